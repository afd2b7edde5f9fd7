"""The doctor: names what is there, what is not, and tells the two packages called apex apart."""

import importlib.util
import json

from megatron_codemix.train import doctor


def test_json_holds_every_package_and_patch(capsys):
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["megatron-core"] == "0.16.1"
    assert found["problems"] == []
    assert {row["name"] for row in found["patches"]} and all(row["cures"] for row in found["patches"])
    assert not found["optional"]["NVIDIA Apex"]["present"] or importlib.util.find_spec("amp_C")


def test_the_other_apex_is_not_taken_for_nvidias(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: "0.9.10" if package == "apex" else "1")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert "not NVIDIA Apex" in doctor._apex_notes()[0]


def test_a_missing_package_is_a_problem_with_its_remedy(monkeypatch, capsys):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "webdataset" else real(package))
    assert doctor.main([]) == 1
    assert "webdataset is missing: pip install" in capsys.readouterr().out
