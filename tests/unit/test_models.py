"""The public documents: the keys of the golden files, in their order, always present, closed."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlm_sandbox import models

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[1] / "golden"

SHAPES = {
    "start": models.Started,
    "file_preview": models.FilePreview,
    "exec": models.Executed,
    "final": models.FinalAnswer,
    "variable": models.Variable,
    "budget": models.BudgetState,
    "list": models.SessionList,
    "list_entry": models.SessionStatus,
    "stop": models.Stopped,
    "gc": models.Collected,
    "broker_status": models.BrokerState,
}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_document_has_the_keys_of_its_golden_file(name):
    assert list(SHAPES[name].model_fields) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_no_key_can_be_left_out_or_added(name):
    required = {key for key, field in SHAPES[name].model_fields.items() if field.is_required()}
    assert set(SHAPES[name].model_fields) - required <= {"format_version"}
    with pytest.raises(ValidationError, match="Extra inputs"):
        models.Variable(name="x", type="int", len=None, surprise=1)


def test_the_statuses_of_a_cell_are_a_closed_set():
    schema = models.Executed.model_json_schema()["properties"]["status"]
    assert schema["enum"] == ["ok", "error", "timeout", "interrupted", "kernel_died", "running"]
