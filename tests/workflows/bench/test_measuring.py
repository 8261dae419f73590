"""What a step keeps, its kinds of kernels, and how bf16 is multiplied on a CPU."""

from __future__ import annotations

import pytest
import torch

from lyrics.core.stage1.state import Loss
from lyrics.workflows.bench import measuring


def test_bf16_factors_are_copied_to_columns_only_where_torch_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.randn(5, 7).bfloat16(), torch.randn(7, 3).bfloat16()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with measuring.products_of("bf16", "cpu") as mode:
        assert isinstance(mode, measuring.ColumnMajorFactors)
        found = first @ second
    torch.testing.assert_close(found, first @ second, atol=2e-2, rtol=0)
    assert measuring.products_of("fp32", "cpu").__class__ is not measuring.ColumnMajorFactors
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert measuring.products_of("bf16", "cpu").__class__ is not measuring.ColumnMajorFactors


def test_saved_bytes_counts_a_storage_once_and_no_parameters() -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8)

    def step():
        hidden = (x @ weight).exp()  # saves x (for the product) and its own output
        return {"loss": Loss((hidden * hidden).sum(), 1)}

    assert measuring.saved_bytes(step, [weight])[0] == x.nbytes + 4 * 8 * 4 + 4, "the last 4: the factor of total_loss"


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
    assert measuring.kind_of(name) == kind
