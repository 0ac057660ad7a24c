"""Checkpoints that are published on the hub: a stand-in of its HTTP API on loopback."""

import dataclasses
import json

import pytest
import yaml

import jax_edm2
from jax_edm2.converter.conversion import ConversionRequest
from jax_edm2.converter.errors import UsageError
from jax_edm2.converter.publish import PublishError, Verified, card, convert_and_publish, publish, read_report
from jax_edm2.record import Source
from tests.support.command_line import Tool
from tests.support.hub import Hub

URL, REPO = "hf://somebody/digits", "somebody/digits"
CONVERT = Tool("edm2-convert", [])
SUMMARY = {
    "schema": "edm2-verify/1",
    "verdict": "agrees",
    "headline": "JAX computes what PyTorch computes",
    "checks": {
        "parameters": {"verdict": "agrees", "count": 63, "failed": 0, "worst": None},
        "forward": {"verdict": "agrees", "count": 286, "failed": 0, "worst": {"error": 4.8e-7, "limit": 3e-6}},
    },
}


@pytest.fixture
def hub(hub, monkeypatch):
    """It knows who we are."""
    monkeypatch.setenv("HF_TOKEN", Hub.TOKEN)
    return hub


def header_and_text(card):
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


def test_checkpoint_record_and_card(hub, digits_pkl, digits_checkpoint, tmp_path):
    record = jax_edm2.read_record(digits_checkpoint)
    report = tmp_path / "report.json"
    report.write_text(json.dumps({**SUMMARY, "snapshot": {"sha256": record.source.sha256}}))
    done = CONVERT.run(digits_pkl, "--push-to", URL, "--accept-license", "--verified", report)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{URL}/digits.safetensors: 63 tensors, 0.7 M parameters, 1.4 MB, float16, sha256:")
    commit, files = hub.at(REPO, "main")
    assert f"{URL}: committed as {hub.endpoint}/{REPO}/commit/{commit}\n" in done.stdout
    assert files.keys() == {"digits.safetensors", "digits.json", "README.md"}
    assert files["digits.safetensors"] == digits_checkpoint.read_bytes()
    assert json.loads(files["digits.json"]) == json.loads(record.to_json())
    assert REPO in hub.private
    header, text = header_and_text(files["README.md"].decode())
    assert header["license"] == "cc-by-nc-sa-4.0"
    for part in (record.digest, record.source.sha256, "| parameters | 722,", "forward: 286 of 286 agree; worst: 4.8e-",
                 'from_pretrained("hf://somebody/digits/digits.safetensors")', '"img_resolution": 8'):  # fmt: skip
        assert part in text, part
    assert jax_edm2.read_record(f"{URL}@{commit}/digits.safetensors") == record


def test_what_is_there_is_replaced_by_force_alone(hub, digits_checkpoint):
    hub.commit(REPO, {"README.md": b"mine"})
    with pytest.raises(FileExistsError, match=rf"^{URL}/README.md exists$"):
        publish(URL, [digits_checkpoint], accept_license=True)
    assert hub.at(REPO, "main")[1] == {"README.md": b"mine"}
    publish(URL, [digits_checkpoint], accept_license=True, overwrite=True)
    assert len(hub.at(REPO, "main")[1]) == 3


def test_what_is_refused(hub, digits_pkl, digits_checkpoint, tmp_path, monkeypatch):
    licensed = "licensed under CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/)"
    CONVERT.fails(digits_pkl, "--push-to", URL, text=licensed)
    CONVERT.fails(digits_pkl, "--accept-license", text="--accept-license and --verified are for --push-to")
    with pytest.raises(UsageError, match="licensed under"):
        publish(URL, [digits_checkpoint], accept_license=False)
    request = ConversionRequest(str(digits_pkl))
    for url in ("s3://bucket/x", "hf://digits", f"{URL}/x.safetensors", "hf://a/b?token=1"):
        with pytest.raises(jax_edm2.CheckpointError, match="those are hf://owner/repo or"):
            convert_and_publish(request, url, accept_license=True)
    for change in ({"format": "pkl"}, {"dry_run": True}, {"output": "s3://bucket/x"}):
        with pytest.raises(UsageError, match="safetensors checkpoints"):
            convert_and_publish(dataclasses.replace(request, **change), URL, accept_license=True)
    other = Verified("0" * 64, "", ())
    with pytest.raises(PublishError, match="was made of another snapshot than the report is about"):
        publish(URL, [digits_checkpoint], accept_license=True, verified=other)
    assert hub.commits == {}
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(jax_edm2.CheckpointError, match=rf"^{URL}: the hub answers 401; set HF_TOKEN"):
        publish(URL, [digits_checkpoint], accept_license=True)


@pytest.mark.parametrize("text", ["", "{}", "[]", "[" * 10**5, json.dumps({**SUMMARY, "checks": {"x": {}}}),
                                  json.dumps({**SUMMARY, "snapshot": 5})], ids=range(6))  # fmt: skip
def test_what_is_no_report(text, tmp_path):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(PublishError, match="is no report of edm2-verify"):
        read_report(tmp_path / "report.json")


def test_nothing_in_a_card_is_markup_but_ours(digits_checkpoint):
    record = jax_edm2.read_record(digits_checkpoint)
    name = "<script>|\n---\nlicense: mit\n---\n](x)"
    strange = dataclasses.replace(record, source=Source(name, "0" * 64))
    verified = Verified(None, "<img src=x> [a](b)", ())
    header, text = header_and_text(card(URL, {"digits.safetensors": strange}, verified))
    assert header["license"] == "cc-by-nc-sa-4.0"
    assert "<script" not in text
    assert "<img" not in text
    assert "license: mit" not in text.splitlines()


def test_a_guide_is_published_beside_its_network(hub, digits_checkpoint, digits_guide_checkpoint):
    publish(URL, [digits_checkpoint, digits_guide_checkpoint], accept_license=True)
    files = hub.at(REPO, "main")[1]
    assert files.keys() == {"digits.safetensors", "digits.json", "digits-guide.safetensors", "digits-guide.json",
                            "README.md"}  # fmt: skip
    assert "## digits-guide.safetensors" in files["README.md"].decode()
