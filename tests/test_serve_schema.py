"""Generated requests, valid and not, by the OpenAPI document: never a 500, and replies are as it says."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from serving import serving
from tiny import save_photos

from mmgem import MMGEM
from mmgem.search.index import update_index

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
FEW = settings(
    max_examples=2,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_the_document_holds(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = MMGEM.from_pretrained(tiny_model_folder)
    save_photos(tmp_path / "photos", 3)
    update_index(tmp_path / "idx", tmp_path / "photos", lambda: model, model.fingerprint, regions=2)
    with serving(model, tmp_path / "idx") as (client, _):
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 16

        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=str(client.base_url), checks=CHECKS)

        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                with suppress(Unsatisfiable):  # a route that takes nothing cannot be asked wrongly
                    FEW(given(operation.as_strategy(generation_mode=mode))(check))()
