"""The page itself, in gradio."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lyrics.core.errors import LyricsError
from lyrics.workflows.demo.parts import Parts
from lyrics.workflows.demo.recipes import command, program
from lyrics.workflows.demo.talk import Talk, ask, look
from lyrics.workflows.demo.view import scene, with_answer
from lyrics.workflows.serve.worker import Worker

_HERE = Path(__file__).parent
#: The largest file that is taken.
MAX_FILE = "10mb"
THEME = gr.themes.Base(
    primary_hue="teal",
    font=["system-ui", "sans-serif"],  # the reader's own: no request to anybody else
    font_mono=["ui-monospace", "monospace"],
).set(
    # Contrasts of 4.5 and more, in light and in dark.
    button_primary_background_fill="#0b6e75",
    button_primary_background_fill_hover="#095a60",
    button_primary_background_fill_dark="#0b6e75",
    button_primary_background_fill_hover_dark="#095a60",
    button_primary_text_color="#ffffff",
    button_primary_text_color_dark="#ffffff",
    input_placeholder_color="#5b6570",
    input_placeholder_color_dark="#b3bcc6",
)


def build_page(worker: Worker, parts: Parts, name: str, examples: Sequence[Image.Image] = ()) -> gr.Blocks:
    """The page of one model.

    Args:
        worker: has the model, and is running.
        parts: exchanges its parts.
        name: what ``--model`` was given.
        examples: images to try.
    """
    handlers = _Handlers(worker, parts, name)
    with gr.Blocks(title=f"lyrics: {name}", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# What does `{name}` see?")
        talk = gr.State(None)
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                picture = gr.Image(
                    type="pil", sources=["upload", "clipboard"], label="Image", height=220, elem_id="picture"
                )
                if examples:
                    gr.Examples(_written(examples), picture, label="Examples", examples_per_page=8)
                said = gr.Chatbot(label="Conversation", height=260, elem_id="said", buttons=["copy"])
                with gr.Row():
                    question = gr.Textbox(
                        label="Question",
                        placeholder="Where is the dog?",
                        elem_id="question",
                        scale=4,
                        min_width=200,
                    )
                    send = gr.Button("Ask", variant="primary", elem_id="ask", scale=1, min_width=80)
                with gr.Row():
                    detector = gr.Dropdown(
                        list(parts.choices["detector"]),
                        value=parts.now["detector"] or "none",
                        label="Detector",
                        elem_id="detector",
                        min_width=140,
                    )
                    segmenter = gr.Dropdown(
                        list(parts.choices["segmenter"]),
                        value=parts.now["segmenter"] or "none",
                        label="Segmenter",
                        elem_id="segmenter",
                        min_width=140,
                    )
            with gr.Column(scale=6, min_width=300):
                shown = gr.HTML(
                    None,
                    html_template='<div class="lyrics-view"></div>',
                    css_template=(_HERE / "view.css").read_text(encoding="utf-8"),
                    js_on_load=(_HERE / "view.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                    elem_id="view",
                )
                with gr.Accordion("The same as a command, and in Python", open=False):
                    # Without a language: gradio's colors for it are too pale on white.
                    shell = gr.Code(
                        command(name, {}, ()),
                        language=None,
                        label="Command",
                        elem_id="shell",
                        show_line_numbers=False,
                    )
                    python = gr.Code(
                        program(name, {}, ()),
                        language=None,
                        label="Python",
                        elem_id="python",
                        show_line_numbers=False,
                    )
        recipes = [shell, python]
        # Somebody else may have exchanged parts since the page was built.
        page.load(handlers.now, None, [detector, segmenter, *recipes], api_name=False)
        picture.change(handlers.look, picture, [talk, shown, said, *recipes], api_name="look")
        asking: Any = {"fn": handlers.ask, "inputs": [talk, question, said, shown]}
        asking |= {"outputs": [talk, question, said, shown, *recipes]}
        send.click(**asking, api_name="ask")
        question.submit(**asking, api_name=False)
        shown.box_drawn(handlers.box, question, question, api_name=False)
        gr.on(
            [detector.input, segmenter.input],
            handlers.choose,
            [detector, segmenter, talk],
            [detector, segmenter, talk, shown, said, *recipes],
            api_name="choose",
        )
    return page


class _Handlers:
    def __init__(self, worker: Worker, parts: Parts, name: str) -> None:
        self.worker, self.parts, self.name = worker, parts, name

    def now(self) -> tuple[str, ...]:
        """The parts that are in use, for a page that is opened."""
        now = self.parts.now
        return now["detector"] or "none", now["segmenter"] or "none", *self._recipes(())

    def look(self, image: Image.Image | None) -> tuple[Any, ...]:
        """A new image: nothing was said about it yet."""
        if image is None:
            return None, None, [], *self._recipes(())
        try:
            talk = look(self.worker, image)
        except LyricsError as error:
            raise gr.Error(html.escape(str(error))) from None  # it is shown as HTML
        return talk, scene(talk.image, talk.seen, self.parts.now), [], *self._recipes(())

    def ask(
        self, talk: Talk | None, question: str, said: list[Any], shown: dict[str, Any] | None
    ) -> Iterator[tuple[Any, ...]]:
        """An answer, as it is written."""
        if talk is None or shown is None:
            raise gr.Error("There is no image yet: drop one, or take an example.")
        said = [*said, {"role": "user", "content": _literal(question.strip())}]
        try:
            for text, answer, after in ask(self.worker, talk, question):
                told = [*said, {"role": "assistant", "content": _literal(text or "...")}]
                if answer is None:
                    yield talk, question, told, gr.skip(), gr.skip(), gr.skip()
                else:
                    view = with_answer(shown, answer, self.parts.now["detector"])
                    yield after, "", told, view, *self._recipes(after.questions)
        except LyricsError as error:
            raise gr.Error(html.escape(str(error))) from None  # it is shown as HTML

    def box(self, question: str, event: gr.EventData) -> str:
        """A box that was drawn, put into the question."""
        try:
            corners = [int(value) for value in event.box]
        except (AttributeError, TypeError, ValueError):
            return question
        box = f"<box {' '.join(map(str, corners[:4]))}>"
        return f"{question.rstrip()} {box}" if question.strip() else f"What is at {box}?"

    def choose(self, detector: str, segmenter: str, talk: Talk | None) -> tuple[Any, ...]:
        """Other parts: the image is looked at once more, and talked about anew."""
        try:
            self.parts.choose(detector, segmenter)
            again = None if talk is None else look(self.worker, talk.image)
        except LyricsError as error:
            raise gr.Error(html.escape(str(error))) from None  # it is shown as HTML
        now = self.parts.now
        view = None if again is None else scene(again.image, again.seen, now)
        return now["detector"] or "none", now["segmenter"] or "none", again, view, [], *self._recipes(())

    def _recipes(self, questions: Sequence[str]) -> tuple[str, str]:
        overrides = self.parts.overrides
        return command(self.name, overrides, questions), program(self.name, overrides, questions)


def _literal(text: str) -> str:
    """Text that the conversation shows as it is: neither Markdown nor HTML."""
    return "".join(f"&#{ord(letter)};" if letter in "<>&*_`#[]()!|\\~$" else letter for letter in text)


def _written(images: Sequence[Image.Image]) -> list[list[str]]:
    """Images as files, which is what examples are."""
    folder = Path(tempfile.mkdtemp(prefix="lyrics-demo-"))
    found = []
    for number, image in enumerate(images, 1):
        path = folder / f"scene-{number}.png"
        image.save(path)
        found.append([str(path)])
    return found


def launch(page: gr.Blocks, host: str, port: int) -> str:
    """Serve a page, in threads of this process; returns its address. Raises ``LyricsError`` where the port is taken."""
    try:
        _, address, _ = page.queue(max_size=32, default_concurrency_limit=4).launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            ssr_mode=False,
            max_file_size=MAX_FILE,
            allowed_paths=[],
            theme=THEME,
            footer_links=[],
        )
    except OSError as error:
        raise LyricsError(f"--host {host} --port {port}: cannot be had ({error}).") from None
    return str(address)
