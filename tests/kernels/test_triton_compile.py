"""The kernels compile for both architectures with the shipped configurations, without a GPU, and fit: no spilling to
speak of, and shared
memory within a block's limit. ``python -m tests.kernels.test_triton_compile`` prints the table of docs/kernels.md."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lyrics.kernels import _triton_kernels
from lyrics.kernels._triton_configs import CANDIDATES, DTYPES, HEAD_DIMS, LENGTHS, SHIPPED, Config, Key

KERNELS = ("forward", "grad_q", "grad_kv")
NAMES = dict(zip(("bf16", "fp16", "fp32"), DTYPES, strict=True))
#: Shared memory that one block may have, bytes.
SHARED = {80: 163 * 1024, 90: 227 * 1024}
SPILL = 16
_FP32 = {"LSE", "DELTA"}
_INT32 = {"ROWS", "COLS", "TILES", "ENTRIES", "ROW_ID", "COL_ID"}
_FLOATS = {"scale", "scale_log2", "keep_scale"}
#: Instructions that multiply on tensor cores; fp32 is multiplied exactly, on the ordinary ones.
TENSOR_CORES = {80: "mma.sync", 90: "wgmma"}


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    shared: int
    assembly: str


def shipped(arch: int, width: int, dtype: str, dropout: bool, length: int = LENGTHS[-1]) -> Config:
    return SHIPPED[Key(arch // 10, NAMES[dtype], width, dropout, length)]


def compile_for(arch: int, kernel: str, width: int, dtype: str, dropout: bool, config: Config) -> Usage:
    """Compile one kernel, with a key mask."""
    rows, keys = (config.row_step, config.key_block) if kernel == "grad_kv" else (config.row_block, config.key_step)
    constants = {"D": width, "M": rows, "N": keys, "DROPOUT": dropout, "KEY_MASK": True, "UPCAST": False}
    function = getattr(_triton_kernels, kernel)
    signature = {name: "constexpr" if name in constants else _type(name, dtype) for name in function.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(function.arg_names)
        if (name.isupper() and name not in constants) or name.endswith(("_token", "_head"))
    }
    compiled = triton.compile(
        ASTSource(function, signature, constants, aligned),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        printed = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", printed)
    assert found, printed
    registers, stack, local = (int(number) for number in found.groups())
    return Usage(registers, stack + local, compiled.metadata.shared, compiled.asm["ptx"])


def _type(name: str, dtype: str) -> str:
    if name in _FP32:
        return "*fp32"
    if name in _INT32:
        return "*i32"
    if name == "KEY_EXISTS":
        return "*u8"
    if name.isupper():
        return f"*{dtype}"
    return "fp32" if name in _FLOATS else "i32"


def check(arch: int, kernel: str, width: int, dtype: str, dropout: bool, config: Config) -> Usage:
    usage = compile_for(arch, kernel, width, dtype, dropout, config)
    assert usage.stack <= SPILL, f"{usage.stack} bytes spilt"
    assert usage.shared <= SHARED[arch], f"{usage.shared} bytes of shared memory"
    assert "atom" not in re.sub(r"//.*", "", usage.assembly), "an atomic operation"
    if dtype != "fp32":
        # Hopper's own instruction takes 64 rows of the product at least; for fewer there is Ampere's.
        multiplied = config.key_block if kernel == "grad_kv" else config.row_block
        assert TENSOR_CORES[arch if multiplied >= 64 else 80] in usage.assembly
    return usage


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("arch", sorted(SHARED))
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_main_size_fits(arch: int, kernel: str) -> None:
    assert TENSOR_CORES[arch] in check(arch, kernel, 64, "bf16", True, shipped(arch, 64, "bf16", True)).assembly


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(SHARED))
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", HEAD_DIMS)
@pytest.mark.parametrize("dtype", sorted(NAMES))
def test_every_shipped_configuration_fits(arch: int, kernel: str, width: int, dtype: str) -> None:
    for dropout in (False, True):
        for config in dict.fromkeys(shipped(arch, width, dtype, dropout, length) for length in LENGTHS):
            usage = check(arch, kernel, width, dtype, dropout, config)
            assert dtype == "fp32" or TENSOR_CORES[arch] in usage.assembly


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(SHARED))
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("config", CANDIDATES)
def test_what_tuning_tries_fits_the_papers_head_dimension(arch: int, kernel: str, config: Config) -> None:
    check(arch, kernel, 64, "bf16", True, config)


def main() -> None:
    """A Markdown table of what the shipped configurations use, with dropout."""
    lines = ["| type, d | kernel | sm_80: registers, spilt B, shared B | sm_90 |", "|---|---|---|---|"]
    for dtype in ("bf16", "fp32"):
        for width in (32, 64, 128):
            for kernel in KERNELS:
                cells = []
                for arch in SHARED:
                    usage = check(arch, kernel, width, dtype, True, shipped(arch, width, dtype, True))
                    cells.append(f"{usage.registers}, {usage.stack}, {usage.shared}")
                lines.append(f"| {dtype}, {width} | {kernel} | {' | '.join(cells)} |")
    os.write(1, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
