"""The step benchmark at toy size: it compares losses before it times, counts, and reports."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from lyrics.workflows.bench import step as bench_step
from tests.commands import Run

SMALL = {
    "sizes": {
        "num_visual": 4,
        "num_grounding": 4,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 300,
        "max_positions": 64,
    },
    "image": (5, 16),
    "local": (7, 12),
    "padded": (32, 12),
}


def test_rows_compare_all_variants() -> None:
    rows = bench_step.compare(3, "fp32", 1, true=(16, 6), profile=True, **SMALL)
    assert [(row["variant"], row["lengths"]) for row in rows] == [
        ("N1", "padded"),
        ("N3", "padded"),
        ("packed", "padded"),
        ("packed", "true"),
    ]
    n1, n3, padded, true = rows
    assert n1["speedup_vs_N1"] == n1["saved_vs_N1"] == 1.0
    assert true["flops"] < padded["flops"] < n3["flops"] < n1["flops"]
    assert true["saved_bytes"] < padded["saved_bytes"] < n1["saved_bytes"]
    for name, value in padded["losses"].items():
        assert value == pytest.approx(n1["losses"][name], rel=1e-4)
    for row in rows:
        assert row["cpu_seconds_forward_backward"] > 0
        assert {"attention", "matrix product", "normalization", "elementwise"} <= row["profile_seconds"].keys()
        assert all(seconds > 0 for seconds in row["profile_seconds"].values())
    shown = bench_step.table(rows)
    assert len(shown.splitlines()) == 5
    assert "packed" in shown


def test_compiled_blocks_are_a_variant_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here by a backend that runs what it was given as it is."""
    compiled = []
    original = torch.nn.Module.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, dynamic: original(self, backend=backend, dynamic=dynamic)
    )
    rows = bench_step.compare(2, "fp32", 1, true=(16, 6), compiled=True, **SMALL)
    assert compiled
    assert [row["variant"] for row in rows] == ["N1", "N3", "packed", "compiled", "packed", "compiled"]
    assert rows[3]["losses"] == pytest.approx(rows[2]["losses"], rel=1e-5)
    assert rows[3]["flops"] == rows[2]["flops"]


def test_bf16_factors_are_copied_to_columns_only_where_torch_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.randn(5, 7).bfloat16(), torch.randn(7, 3).bfloat16()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with bench_step._products("bf16", "cpu") as mode:
        assert isinstance(mode, bench_step._ColumnMajorFactors)
        found = first @ second
    torch.testing.assert_close(found, first @ second, atol=2e-2, rtol=0)
    assert bench_step._products("fp32", "cpu").__class__ is not bench_step._ColumnMajorFactors
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert bench_step._products("bf16", "cpu").__class__ is not bench_step._ColumnMajorFactors


def test_unequal_losses_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments):
        losses = bench_step.dense_losses(*arguments)
        return losses | {"icg": bench_step.Loss(losses["icg"].sum * 1.01, losses["icg"].count)}

    monkeypatch.setattr(bench_step, "pretrain_losses", wrong)
    with pytest.raises(AssertionError, match="icg of packed"):
        bench_step.compare(2, "fp32", 1, true=(16, 6), **SMALL)


def test_saved_bytes_counts_a_storage_once_and_no_parameters() -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8)

    def step():
        hidden = (x @ weight).exp()  # saves x (for the product) and its own output
        return {"loss": bench_step.Loss((hidden * hidden).sum(), 1)}

    assert bench_step.saved_bytes(step, [weight])[0] == x.nbytes + 4 * 8 * 4 + 4, "the last 4: the factor of total_loss"


def test_the_file_carries_machine_versions_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"variant": "N1", "lengths": "padded", "batch": 2, "dtype": "fp32", "saved_bytes": 5e9}
    measured |= {"attention": "auto", "seconds_forward_backward": 1.5, "all_seconds": {"both": [1.0, 1.5, 3.0]}}
    monkeypatch.setattr(bench_step, "compare", lambda *args, **kwargs: [measured])
    out = tmp_path / "results" / "step.json"
    bench_step.run_bench_step((2,), ("fp32",), 1, out=out)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["variant"] == "N1"
    assert row["machine"]["cpu"]
    assert row["versions"]["torch"] == torch.__version__
    assert {"commit", "time"} <= set(row)
    chart = ElementTree.fromstring(out.with_suffix(".svg").read_text())
    texts = [one.text for one in chart.iter() if one.text]
    assert {"step, s: batch 2, fp32", "kept for backward, GB: batch 2, fp32", "N1 padded: 1.5", "N1 padded: 5"} <= set(
        texts
    )


def test_a_case_that_fails_on_a_gpu_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without a GPU: what is measured is stood in for."""
    measured = {"variant": "N1", "lengths": "padded", "batch": 64, "dtype": "bf16", "saved_bytes": 5e9}
    measured |= {"seconds_forward": 0.5, "seconds_forward_backward": 1.5, "all_seconds": {"both": [1.0, 1.5, 3.0]}}
    measured |= {"samples_per_second": 42.0, "flops": 1e12, "peak_bytes": 73e9}
    measured |= {"speedup_vs_N1": 1.0, "speedup_vs_N3": 1.0, "saved_vs_N1": 1.0}

    def compare(batch_size, *rest, attention, **kwargs):
        if batch_size == 128:
            raise torch.OutOfMemoryError("tried to allocate\n9 GiB")
        return [measured | {"attention": attention}]

    monkeypatch.setattr(bench_step, "compare", compare)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    out = tmp_path / "step.json"
    rows = bench_step.run_bench_step((128, 64), ("bf16",), 1, device="cuda", attentions=("triton", "sdpa"), out=out)
    assert [(row["batch"], row["attention"], row.get("status")) for row in rows] == [
        (128, "triton", "failed"),
        (128, "sdpa", "failed"),
        (64, "triton", None),
        (64, "sdpa", None),
    ]
    assert rows[0]["reason"] == "OutOfMemoryError: tried to allocate 9 GiB"
    assert json.loads(out.read_text())["rows"] == rows
    shown = bench_step.table(rows).splitlines()
    assert "failed" in shown[1]
    assert "73.0" in shown[3]
    with pytest.raises(torch.OutOfMemoryError):
        bench_step.run_bench_step((128,), ("bf16",), 1)


def test_out_of_time_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = bench_step.run_bench_step((2,), ("fp32",), 1, minutes=-1.0)
    assert (row["status"], row["reason"]) == ("not run", "out of time")
    assert "not run" in bench_step.table([row])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("forward", "attention"),
        ("grad_kv", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention)", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_TNT", "matrix product"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix product"),
        ("aten::addmm", "matrix product"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float>", "normalization"),
        ("void at::native::GammaBetaBackwardCUDAKernelTemplate<float>", "normalization"),
        ("void (anonymous namespace)::softmax_warp_forward<float>", "softmax and cross-entropy"),
        ("void at::native::nll_loss_forward_reduce_cuda_kernel_2d<float>", "softmax and cross-entropy"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "indexing and copying"),
    ],
)
def test_kernels_are_known_by_their_names(name: str, kind: str) -> None:
    assert bench_step.kind_of(name) == kind


def test_the_packed_step_uses_the_attention_it_is_told() -> None:
    rows = bench_step.compare(2, "fp32", 1, true=(16, 6), attention="reference", **SMALL)
    assert {row["attention"] for row in rows} == {"reference"}
    with pytest.raises(ValueError, match="'flash' cannot run here"):
        bench_step.compare(2, "fp32", 1, true=(16, 6), attention="flash", **SMALL)


@pytest.mark.parametrize(
    "arguments", [("--attention", "fast"), ("--dtype", "fp8"), ("--device", "tpu"), ("--device", "cuda:99x")]
)
def test_what_is_not_here_is_said(run: Run, arguments: tuple[str, str]) -> None:
    done = run("bench", "step", *arguments)
    assert done.code == 2
    assert arguments[1] in done.err


def test_the_command_fails_where_a_case_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"batch": 128, "dtype": "bf16", "attention": "triton", "status": "failed", "reason": "out of memory"}
    monkeypatch.setattr(bench_step, "run_bench_step", lambda *arguments, **kwargs: [absent])
    done = run("bench", "step")
    assert done.code == 1
    assert "failed" in done.out
