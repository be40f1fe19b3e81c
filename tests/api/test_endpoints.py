"""The public HTTP API, called as a user calls it: gradio_client over a served app."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from workbench.export import unpack
from workbench.security import launch_options, queue_options, quiet_environment
from workbench.settings import Settings

quiet_environment()
ENDPOINTS = {"/info", "/predict", "/scan", "/schemes", "/erf", "/attribution", "/profile"}
ENDPOINTS |= {"/export", "/sweep", "/trace", "/runs", "/compare"}
ENDPOINTS |= {"/what_if", "/roofline", "/token", "/kernel"}
TEST_MODEL = {"model": "efficientvmamba_test", "weights": "random", "size": 128}


@pytest.fixture(scope="module")
def client() -> Iterator[object]:
    from gradio_client import Client

    from workbench.runtime import Workbench
    from workbench.ui.build import build_app

    settings = Settings()
    demo = build_app(settings, Workbench(settings)).queue(**queue_options(settings))
    options = launch_options(settings) | {"server_port": None, "quiet": True}
    _, url, _ = demo.launch(prevent_thread_lock=True, **options)
    try:
        yield Client(url, verbose=False)
    finally:
        demo.close()


def fails(client: object, endpoint: str, **arguments: object) -> str:
    """The sentence with which a call is refused."""
    with pytest.raises(Exception) as caught:
        client.predict(**arguments, api_name=endpoint)
    message = str(caught.value)
    assert "Traceback" not in message
    return message


def test_the_public_endpoints_are_exactly_these(client) -> None:
    api = client.view_api(return_format="dict")
    assert set(api["named_endpoints"]) == ENDPOINTS
    assert not api["unnamed_endpoints"]
    for name, endpoint in api["named_endpoints"].items():
        assert endpoint.get("description"), f"{name} has no description"


def test_info_lists_what_can_be_asked_for(client) -> None:
    info = client.predict(api_name="/info")
    assert "efficientvmamba_tiny" in [m["name"] for m in info["models"]]
    assert {"es2d:step=2", "ss2d"} <= {s["name"] for s in info["scans"]}
    assert "chelsea" in [p["id"] for p in info["images"]]
    assert all(p["credit"] and p["licence"] for p in info["images"])
    assert info["methods"]["integrated_gradients"]["fields"][0]["name"] == "steps"
    assert (
        "gradients" not in info["methods_not_offered"] and info["methods_not_offered"]["deep_lift"]
    )
    assert info["backends"]["cpu"] is None
    assert set(info["backends"]) == {"reference", "cpu", "triton"}


def test_predict(client) -> None:
    answer = client.predict(**TEST_MODEL, image="coffee", api_name="/predict")
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-4)
    p = answer["provenance"]
    assert (p["model"], p["image"], p["backend"]) == ("efficientvmamba_test", "coffee", "cpu")
    assert p["is_random"] is True
    assert (
        client.predict(**TEST_MODEL, image="coffee", api_name="/predict")["logits"]
        == (answer["logits"])
    )


def test_scan(client) -> None:
    answer = client.predict(**TEST_MODEL, scan="es2d:step=3", stage=1, api_name="/scan")
    index = np.array(answer["index"])
    assert index.shape == (9, 11 * 11)
    assert sorted(index[index >= 0]) == list(range(32 * 32))
    assert answer["is_verified"] is True


def test_scan_has_the_reach_of_a_token(client) -> None:
    answer = client.predict(**TEST_MODEL, stage=2, y=3, x=9, api_name="/scan")
    reach = answer["reach"]
    assert (reach["y"], reach["x"], reach["steps_back"][3][9]) == (3, 9, 0)
    assert reach["curve_p50"][0] == 1.0 and reach["layer"] == "layers.1.blocks.0.op"
    assert reach["restored"][-1]["share"] == 1.0
    centre = client.predict(**TEST_MODEL, stage=2, api_name="/scan")["reach"]
    assert (centre["y"], centre["x"]) == (8, 8)


def test_scan_takes_any_scheme_with_its_numbers(client) -> None:
    answer = client.predict(
        **TEST_MODEL, scan="windows:size=3,reverse=2", stage=1, api_name="/scan"
    )
    assert answer["is_verified"] is True and answer["provenance"]["scan"].endswith("reverse=2")
    drawn = client.predict(**TEST_MODEL, scan="vim", stage=1, api_name="/scan")
    assert drawn["is_runnable"] is False and drawn["is_verified"] is False
    assert drawn["reach"]["decay"][0][0] is None


def test_scan_as_files(client) -> None:
    answer = client.predict(
        **TEST_MODEL, stage=1, formats="json, npz,png,svg,html,zip", api_name="/scan"
    )
    files = {name: base64.b64decode(data) for name, data in answer["files"].items()}
    assert {f"{name}.{form}" for name in ("scan", "reach") for form in ("png", "svg")} <= set(files)
    assert {"scan_a.json", "reach_a.json", "scan.html", "scan.zip"} <= set(files)
    with np.load(io.BytesIO(files["scan_a.npz"]), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["index"], answer["index"])
    assert unpack(files["scan.zip"]).results["reach_a"].steps_back.shape == (32, 32)
    assert "files" not in client.predict(**TEST_MODEL, stage=1, api_name="/scan")


def test_schemes(client) -> None:
    answer = client.predict(
        **TEST_MODEL, scan="morton:transpose=2", stage=2, latency=False, api_name="/schemes"
    )
    rows = {row["scan"]: row for row in answer["rows"]}
    assert {"es2d:step=2", "ss2d", "hilbert", "vim", "morton:transpose=2"} <= set(rows)
    assert rows["ss2d"]["metrics"]["mean_reach"] == 1.0
    assert rows["vim"]["status"] == "path only" and rows["hilbert"]["status"] == "not measured"
    assert rows["hilbert"]["p50_ms"] is None


def test_erf(client) -> None:
    answer = client.predict(**TEST_MODEL, stage=2, y=3, x=9, images=2, api_name="/erf")
    mass = np.array(answer["mass"])
    assert mass.shape == (128, 128)
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    assert (answer["y"], answer["x"], answer["n_images"]) == (3, 9, 2)
    assert answer["is_final"] is True


def test_erf_of_a_block_by_another_definition_with_everything(client) -> None:
    answer = client.predict(
        **TEST_MODEL,
        stage=1,
        y=9,
        x=4,
        images=3,
        unit="block1",
        definition="replknet",
        gates="frozen",
        phases=True,
        paths=True,
        formats="npy,npz,json,png,svg,tex,csv",
        api_name="/erf",
    )
    assert (answer["unit"], answer["gates"]) == ("stage1.block1", "frozen")
    assert answer["definition"] == "replknet" and answer["n_bootstrap"] > 0
    assert np.array(answer["reach"]).shape == (128, 128)
    cell = {(p["field"]["y"], p["field"]["x"]) for p in answer["phases"]["phases"]}
    assert cell == {(8, 4), (8, 5), (9, 4), (9, 5)}
    (block,) = answer["paths"]["blocks"]
    assert block["paths"] == ["residual", "scan", "conv"] and block["error"] < 1e-5
    files = {name: base64.b64decode(data) for name, data in answer["files"].items()}
    mass = np.load(io.BytesIO(files["erf_a.npy"]))
    np.testing.assert_allclose(mass, answer["mass"], rtol=1e-4, atol=1e-9)
    assert b"replknet" in files["erf.tex"].lower() and files["erf.csv"].count(b"\n") >= 2
    assert {"erf.png", "erf.svg", "erf_phases.png", "erf_paths.png"} <= set(files)


def test_erf_of_another_network_at_the_same_point(client) -> None:
    networks = {n["name"] for n in client.predict(api_name="/info")["networks"]}
    assert {"scan", "random", "timm:resnet18", "efficientvmamba_small"} <= networks
    answer = client.predict(
        **TEST_MODEL, stage=2, y=3, x=9, images=1, net="timm:resnet18", api_name="/erf"
    )
    assert answer["provenance"]["model"] == "timm:resnet18"
    assert (answer["stride"], answer["y"], answer["x"]) == (8, 3, 9) or answer["y"] == 4
    assert np.array(answer["mass"]).shape == (128, 128)


def test_attribution(client) -> None:
    answer = client.predict(**TEST_MODEL, target=2, api_name="/attribution")
    assert [np.array(m).shape for m in answer["maps"]] == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert answer["target"] == 2
    assert all(e["error"] < 1e-4 for e in answer["evidence"])


def test_attribution_by_a_method_with_everything(client) -> None:
    answer = client.predict(
        **(TEST_MODEL | {"size": 64}),
        stage=1,
        y=3,
        x=4,
        target=1,
        contrast=2,
        method="integrated_gradients",
        options="baseline=mean,steps=2",
        beside="scan",
        block=1,
        channel=3,
        evidence=True,
        attention=True,
        faithfulness=True,
        sanity=True,
        formats="npz,npy,json,png,svg,zip",
        api_name="/attribution",
    )
    assert (answer["method"], answer["target"], answer["contrast"]) == (
        "integrated_gradients",
        1,
        2,
    )
    assert answer["provenance"]["parameters"]["steps"] == 2
    (own,), (other,) = answer["maps"], answer["rival"]["maps"]
    assert np.array(own["values"]).shape == (64, 64) and own["values"] != other["values"]
    assert answer["rival"]["provenance"]["scan"] == "ss2d" and answer["rival"]["target"] == 1
    assert answer["evidence"]["blocks"][0]["paths"] == ["scan", "conv", "residual"]
    attention = [answer[f"attention_{key}"] for key in "ab"]
    assert [a["provenance"]["scan"] for a in attention] == ["es2d:step=2", "ss2d"]
    assert {(a["y"], a["x"], a["channel"]) for a in attention} == {(3, 4, 3)}
    assert answer["faithfulness"]["is_final"] and answer["randomisation"]["is_final"]
    files = {name: base64.b64decode(data) for name, data in answer["files"].items()}
    values = np.load(io.BytesIO(files["maps_a_input.npy"]))
    np.testing.assert_allclose(values, own["values"], rtol=1e-4, atol=1e-12)
    with np.load(io.BytesIO(files["maps_a.npz"]), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["maps.0.values"], values)
    pictures = {f"{n}.png" for n in ("maps", "evidence", "attention", "faithfulness")}
    assert pictures <= set(files)
    results = set(unpack(files["attribution.zip"]).results)
    assert {f"{name}.json" for name in results} <= set(files) and len(results) == 7


def test_attribution_by_a_method_alone(client) -> None:
    answer = client.predict(
        **(TEST_MODEL | {"size": 64}), method="saliency", api_name="/attribution"
    )
    assert (answer["where"], answer["is_signed"], answer["contrast"]) == ("input", False, None)
    extras = ("rival", "evidence", "attention_a", "faithfulness", "randomisation", "files")
    assert not set(extras) & set(answer) and answer["baseline_objective"] is None


def test_profile(client) -> None:
    answer = client.predict(**TEST_MODEL, api_name="/profile")
    assert answer["is_correct"] is True
    assert 0 < answer["p20_ms"] <= answer["p50_ms"] <= answer["p80_ms"]
    assert {b["stage"] for b in answer["blocks"]} >= {1, 2, 3, 4}


def test_export(client) -> None:
    answer = client.predict(**TEST_MODEL, api_name="/export")
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(answer["base64"]))) as archive:
        names = archive.namelist()
    assert sum(name.endswith(".png") for name in names) == 4
    assert {"token_a.json", "token_b.json", "token.csv"} <= set(names)
    assert any(name.endswith(".npz") for name in names)


def test_export_of_the_scan_tab(client) -> None:
    answer = client.predict(
        **TEST_MODEL, stage=1, scan_c="zigma", tab="scan", y=3, x=4, api_name="/export"
    )
    assert "-scan-stage1-y3-x4" in answer["name"]
    bundle = unpack(base64.b64decode(answer["base64"]))
    paths, reaches = {f"scan_{k}" for k in "abc"}, {f"reach_{k}" for k in "abc"}
    costs = {f"token_{k}" for k in "abc"}
    assert set(bundle.results) == {*paths, *reaches, *costs, "schemes"}
    assert bundle.results["scan_c"].provenance.scan == "zigma:path=0"
    assert (bundle.results["reach_a"].y, bundle.results["reach_a"].x) == (3, 4)
    assert set(bundle.pictures) == {"scan", "reach"}
    head, *rows = bundle.tables["schemes"].decode().splitlines()
    assert head.startswith("scan,label") and len(rows) == len(bundle.results["schemes"].rows)
    assert "tab=scan" in bundle.extra["link"]


def test_export_of_the_erf_tab(client) -> None:
    answer = client.predict(
        **TEST_MODEL, stage=1, tab="erf", images=2, nets="scan,random", api_name="/export"
    )
    bundle = unpack(base64.b64decode(answer["base64"]))
    assert set(bundle.results) == {"erf_a", "erf_b", "erf_c", "erf_phases", "erf_paths"}
    assert set(bundle.pictures) == {"erf", "erf_phases", "erf_paths"}
    assert bundle.results["erf_b"].provenance.scan == "ss2d"
    assert set(bundle.tables) >= {"erf"}


def test_export_of_the_kernels_tab(client) -> None:
    setting = {"what_size": 64, "what_batch": 1, "gpu": "sm_80"}
    answer = client.predict(**TEST_MODEL, **setting, stage=1, tab="kernels", api_name="/export")
    assert "-kernels-stage1" in answer["name"]
    bundle = unpack(base64.b64decode(answer["base64"]))
    costs = {"token_a", "token_b"}
    assert set(bundle.results) == {"roofline", "what_if", "kernel", *costs}
    assert set(bundle.pictures) == {"roofline", "token", "kernel"}
    assert set(bundle.tables) == {"roofline", "what_if", "kernel", "token"}
    assert bundle.results["kernel"].a.target == "sm_80" and "gpu=sm_80" in bundle.extra["link"]


def test_export_of_the_attribution_tab(client) -> None:
    answer = client.predict(
        **(TEST_MODEL | {"size": 64}),
        stage=1,
        tab="attribution",
        method="saliency",
        target=1,
        contrast=2,
        beside="photo:coffee",
        sanity=True,
        api_name="/export",
    )
    assert "-attribution-stage1-" in answer["name"]
    bundle = unpack(base64.b64decode(answer["base64"]))
    pairs = {f"{name}_{key}" for name in ("maps", "attention") for key in "ab"}
    assert set(bundle.results) == pairs | {"evidence", "faithfulness", "randomisation"}
    assert set(bundle.pictures) == {"maps", "evidence", "attention", "faithfulness"}
    assert bundle.results["maps_b"].provenance.image == "coffee"
    assert bundle.results["maps_a"].maps[0].values.shape == (64, 64)
    assert bundle.results["faithfulness"].method == "saliency"
    for part in ("method=saliency", "contrast=2", "beside=photo:coffee", "sanity=1"):
        assert part in bundle.extra["link"]


def test_a_sweep_is_measured_kept_and_compared(client) -> None:
    asked = TEST_MODEL | {"axis": "size", "values": "64,96"}
    first = client.predict(**asked, api_name="/sweep")
    second = client.predict(**asked, formats="csv,png", api_name="/sweep")
    assert {p["label"] for p in first["points"]} == {"64", "96"}
    assert all(p["status"] == "" and p["p50_ms"] > 0 for p in first["points"])
    assert first["environment"] and {"sweep.csv", "sweep.png"} <= set(second["files"])
    runs = client.predict(api_name="/runs")["runs"]
    newest = [run["id"] for run in runs if run["kind"] == "sweep"][:1]
    assert newest and client.predict(search="no such words", api_name="/runs")["runs"] == []
    kept = client.predict(action="export", run=newest[0], api_name="/runs")["file"]
    client.predict(action="rename", run=newest[0], name="sweep of the API", api_name="/runs")
    client.predict(action="delete", run="sweep of the API", api_name="/runs")
    back = client.predict(action="import", file=kept, api_name="/runs")
    assert back["run"]["id"] == newest[0]
    comparison = client.predict(a=newest[0], b=newest[0], api_name="/compare")
    assert {row["ratio"] for row in comparison["rows"]} == {1.0}


def test_a_trace_is_recorded_or_brought(client) -> None:
    answer = client.predict(**TEST_MODEL, steps=2, formats="csv", api_name="/trace")
    assert answer["source"] == "profiled here" and answer["operators"] and answer["modules"]
    assert len(answer["steps"]) == 2 and answer["timeline"] is None
    assert "stages.0.blocks.0" in [row["module"] for row in answer["modules"]]
    assert {"trace_operators.csv", "trace_modules.csv"} <= set(answer["files"])
    events = [
        {"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 1, "tid": 1, "ts": 1, "dur": 2}
    ]
    body = base64.b64encode(json.dumps({"traceEvents": events}).encode()).decode()
    brought = client.predict(trace=f"data:application/json;base64,{body}", api_name="/trace")
    assert [row["name"] for row in brought["operators"]] == ["aten::add"]
    assert brought["operators"][0]["self_cpu_ns"] == 2000
    bad = base64.b64encode(b"<html>").decode()
    assert "trace" in fails(client, "/trace", trace=f"data:text/html;base64,{bad}")


def test_floors_tokens_and_kernels(client) -> None:
    info = client.predict(api_name="/info")
    assert "H100 SXM" in [gpu["device"] for gpu in info["gpus"]] and "sm_90" in info["gpu_targets"]
    model = {"model": "efficientvmamba_test"}
    floors = client.predict(**model, what_batch=128, api_name="/what_if")
    assert floors["ratio"] > 3 and {row["scan"] for row in floors["rows"]} == {
        "es2d:step=2",
        "ss2d",
    }
    small = {"what_size": 64, "what_batch": 1, "what_device": "here", "what_dtype": "float32"}
    found = client.predict(**model, **small, formats="csv", api_name="/roofline")
    assert found["measured"][0]["p50_ms"] > 0 and found["what_if"]["device"]["kind"] == "measured"
    assert "roofline.csv" in found["files"]
    token = client.predict(**TEST_MODEL, stage=1, y=2, x=3, formats="csv", api_name="/token")
    assert token["b"]["exps"] == 4 * token["a"]["exps"] and "token.csv" in token["files"]
    kernel = client.predict(gpu="sm_80", listing="ptx", formats="csv,png", api_name="/kernel")
    assert kernel["a"]["target"] == "sm_80" and kernel["a"]["registers"] > 0
    assert "ex2.approx" in "".join(line["text"] for line in kernel["listing"]["lines"])
    assert {"kernel.csv", "kernel.png"} <= set(kernel["files"])


def test_a_photo_as_data_uri(client) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((90, 70, 3), 40, np.uint8)).save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    answer = client.predict(**TEST_MODEL, image=uri, api_name="/predict")
    assert answer["provenance"]["image"].startswith("upload-")


@pytest.mark.parametrize(
    ("endpoint", "arguments", "words"),
    [
        ("/predict", {"model": "resnet18"}, "efficientvmamba_tiny"),
        ("/predict", {"model": "/etc/passwd"}, "efficientvmamba_tiny"),
        ("/sweep", {"axis": "colour"}, "size, batch"),
        ("/what_if", {"what_device": "abacus"}, "H100 SXM"),
        ("/roofline", {"what_batch": 7}, "128"),
        ("/token", {"stage": 3}, "no scan"),
        ("/kernel", {"kernel": "os.system"}, "kernel"),
        ("/kernel", {"gpu": "sm_1"}, "sm_90"),
        ("/kernel", {"listing": "/etc/passwd"}, "ptx"),
        ("/sweep", {"values": "64,big"}, "whole numbers"),
        ("/sweep", {"batch": 0}, "from 1 to"),
        ("/trace", {"steps": 1000}, "from 1 to"),
        ("/trace", {"trace": "../../etc/passwd"}, "trace"),
        ("/runs", {"action": "burn"}, "rename, delete"),
        ("/runs", {"action": "import", "file": "%%%"}, "base64"),
        ("/runs", {"action": "delete", "run": "none such"}, "none such"),
        ("/compare", {"a": "none such", "b": "none such"}, "none such"),
        ("/predict", {"weights": "hf:someone/something"}, "random"),
        ("/predict", {"image": "../../etc/passwd"}, "chelsea"),
        ("/predict", {"image": "http://127.0.0.1/x.png"}, "chelsea"),
        ("/predict", {"image": "data:image/png;base64,AAAA"}, "image sent to the API"),
        ("/scan", {"scan": "es2d:step=0"}, "step"),
        ("/scan", {"scan": "helix"}, "es2d"),
        ("/scan", {"stage": 7}, "stage"),
        ("/scan", {"scan": "windows:size=-2"}, "size"),
        ("/scan", {"scan": "es2d:step=1.5"}, "whole number"),
        ("/scan", {"scan": "numpy:array"}, "es2d"),
        ("/scan", {"formats": "png,gif"}, "json, npz, png, svg, html, zip"),
        ("/scan", {"formats": "tex"}, "json, npz, png, svg, html, zip"),
        ("/export", {"tab": "compiler"}, "overview, scan, erf"),
        ("/erf", {"unit": "head"}, "block1.scan"),
        ("/erf", {"definition": "mine"}, "mass, replknet, vmamba, openerf"),
        ("/erf", {"gates": "open"}, "live, frozen"),
        ("/erf", {"net": "timm:resnet19"}, "timm:resnet18"),
        ("/erf", {"net": "hf:someone/something"}, "timm:resnet18"),
        ("/erf", {"net": "file:/etc/passwd"}, "timm:resnet18"),
        ("/erf", {"images": 5001}, "5,000"),
        ("/erf", {"phases": 1}, "true or false"),
        ("/export", {"nets": "a,b,c,d", "tab": "erf"}, "at most 3"),
        ("/export", {"scan_c": 3}, "text or null"),
        ("/schemes", {"latency": 1}, "true or false"),
        ("/predict", {"scan": "cascade2d"}, "another network"),
        ("/erf", {"images": 0}, "image"),
        ("/attribution", {"target": 10_000}, "class"),
        ("/attribution", {"method": "deep_lift"}, "is not offered"),
        ("/attribution", {"method": "score_cam"}, "grad_cam"),
        ("/attribution", {"method": "layer_ig", "options": "steps=0"}, "1 to 1024"),
        ("/attribution", {"method": "grad_cam", "options": "steps=1"}, "fields: none"),
        ("/attribution", {"method": "lrp", "contrast": 1000}, "0 to 999"),
        ("/attribution", {"method": "lrp", "contrast": 3, "target": 3}, "with itself"),
        ("/attribution", {"method": "lrp", "contrast": "tench"}, "whole number or null"),
        ("/attribution", {"method": "lrp", "beside": "photo:nobody"}, "chelsea"),
        ("/attribution", {"method": "lrp", "beside": "file:/etc/passwd"}, "photo:NAME"),
        ("/attribution", {"method": "grad_cam", "attention": True, "channel": 64}, "0 to 63"),
        ("/attribution", {"method": "grad_cam", "block": 0}, "count from 1"),
        ("/attribution", {"method": "grad_cam", "evidence": 1}, "true or false"),
        ("/attribution", {"method": "grad_cam", "formats": "csv"}, "csv is for"),
        ("/attribution", {"contrast": 3}, "contrast needs a method"),
        ("/attribution", {"contrast": 0}, "contrast needs a method"),
        ("/attribution", {"faithfulness": True}, "faithfulness needs a method"),
        ("/attribution", {"formats": "png"}, "formats needs a method"),
        ("/attribution", {"sanity": True}, "sanity needs a method"),
        ("/export", {"tab": "attribution", "method": "deep_lift"}, "is not offered"),
        ("/predict", {"size": 100_000}, "224"),
    ],
)
def test_bad_names_and_numbers_get_one_clear_sentence(client, endpoint, arguments, words) -> None:
    has_photo = endpoint not in ("/compare", "/runs", "/what_if", "/roofline", "/kernel")
    shown = TEST_MODEL if has_photo else {}
    assert words in fails(client, endpoint, **(shown | arguments))


def test_wrong_types_do_not_break_the_server(client) -> None:
    for arguments in ({"stage": "two"}, {"size": None}, {"image": 5}, {"y": "a"}, {"y": 1.5}):
        assert "give" in fails(client, "/erf", **(TEST_MODEL | arguments))
    assert client.predict(api_name="/info")["models"]
