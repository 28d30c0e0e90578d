import subprocess
import sys

import pytest

LIGHT = ["yivl_core", "yivl_core.doors", "yivl_core.data.validation", "yivl_core.data.reading", "yivl_core.outputs.shards",
         "yivl_core.outputs.contact_sheet", "yivl_core.outputs.manifest", "yivl_core.evaluation.report",
         "yivl_core.training.configuration", "yivl_core.inference.configuration", "yivl_core.export.configuration",
         "yivl_core.model.files"]  # fmt: skip


def loaded(code: str) -> set[str]:
    """Top-level modules after some code, in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_data_outputs_and_evaluation_load_neither_torch_nor_prefect() -> None:
    assert not {"torch", "transformers", "peft", "prefect"} & loaded("\n".join(f"import {name}" for name in LIGHT))


@pytest.mark.slow
def test_the_core_never_loads_prefect() -> None:
    names = ["yivl_core.training.sft", "yivl_core.export.merge", "yivl_core.inference.batch", "yivl_core.child"]
    modules = loaded("\n".join(f"import {name}" for name in names))
    assert "torch" in modules
    assert "prefect" not in modules


def test_the_six_doors_can_be_imported_from_the_top() -> None:
    import yivl_core

    for name in yivl_core.__all__:
        assert getattr(yivl_core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = yivl_core.train
