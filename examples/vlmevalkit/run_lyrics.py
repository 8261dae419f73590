"""VLMEvalKit's ``run.py`` with the model ``lyrics`` in its table.

    cd VLMEvalKit
    python PATH/TO/run_lyrics.py FOLDER --data Q-Bench1_TEST OCRVQA_TEST --model lyrics

FOLDER is a model folder (or a preset, or a hub id); what follows it is ``run.py``'s own.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from lyrics_vlm import LyricsVLM


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: run_lyrics.py FOLDER --data SET... --model lyrics (in a checkout of VLMEvalKit)")
    folder = sys.argv.pop(1)
    sys.path.insert(0, os.getcwd())
    import run  # VLMEvalKit's
    from vlmeval.config import supported_VLM

    device = "cuda" if run.GPU_LIST else None
    supported_VLM["lyrics"] = partial(LyricsVLM, folder, device=device)
    run.main()


if __name__ == "__main__":
    main()
