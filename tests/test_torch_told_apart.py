"""What a run of post-training must tell from another before it goes on, and what a training leaves behind."""

from __future__ import annotations

import gc
import resource
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from test_torch_post_methods import images, network, random
from test_torch_training import advance, plain
from torch import nn

import nmflow.torch as nt
from nmflow.checkpoint import journal
from nmflow.torch.feed import Draws
from nmflow.torch.resume import Saved, Store


def test_biases_of_modules_that_share_a_weight_absorb_nothing() -> None:
    """What both saw is summed up together: neither bias alone can make up for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    before = [model[number].bias.detach().clone() for number in (0, 2)]
    report = nt.adaprune_(model, [random(64, 16) + 1], 2, 4, sequential=False)
    assert [layer.name for layer in report.layers] == ["0.weight"]
    assert torch.equal(model[0].bias, before[0])
    assert torch.equal(model[2].bias, before[1])


def test_a_state_of_frozen_masks_freezes() -> None:
    model, optimizer, training = plain()
    advance(model, optimizer, 0, 7)
    training.freeze()
    other, optimizer, going_on = plain()
    going_on.load_state_dict(training.state_dict())
    assert going_on.frozen
    masks = {name: mask.clone() for name, mask in going_on.masks.items()}
    advance(other, optimizer, 7, 20)
    assert all(torch.equal(mask, masks[name]) for name, mask in going_on.masks.items())
    going_on.load_state_dict({**training.state_dict(), "frozen": False})
    assert not going_on.frozen


def test_finish_leaves_nothing_in_the_optimizer() -> None:
    _, optimizer, training = plain()
    training.finish()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    gone = weakref.ref(training)
    del training
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("sequential", [False, True])
def test_layers_of_other_batches_are_not_resumed(sequential: bool, tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done and name.endswith(".weight"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nt.adaprune_(network(), images(0), 2, 4, sequential=sequential, resume=tmp_path, progress=stop)
    assert list(tmp_path.glob("*.layer"))
    resumed, whole = network(), network()
    nt.adaprune_(resumed, images(1), 2, 4, sequential=sequential, resume=tmp_path)
    nt.adaprune_(whole, images(1), 2, 4, sequential=sequential)
    assert all(torch.equal(one, two) for one, two in zip(resumed.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize(
    "pair",
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
    ],
    ids=["shape", "dtype"],
)
def test_tensors_of_the_same_bytes_are_told_apart(pair: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    names = set()
    for value in pair:
        store = Store.open(tmp_path, {})
        store.sign([value])
        names.add(store._place("weight").name)
    assert len(names) == 2


def test_a_run_on_a_calibration_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = nt.calibrate(network(), images())

    def stop(name: str, done: int, total: int) -> None:
        if done and name.endswith(".weight"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nt.adaprune_(network(), seen, 2, 4, sequential=False, resume=tmp_path, progress=stop)
    treated: list[str] = []
    nt.adaprune_(
        network(), seen, 2, 4, sequential=False, resume=tmp_path, progress=lambda name, *_: treated.append(name)
    )
    assert treated == ["3.weight", "5.weight", ""]


@pytest.mark.parametrize(
    "change",
    [{"absorb_mean": False}, {"keep_zeros": True}, {"follow": "own"}, {"solve": "adam"}, {"damping": 0.5}, {"n": 1},
     {"damping": 0.05}, {"solver": "greedy"}, {"scores": "wanda"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_layers_of_other_options_are_not_resumed(change: dict[str, Any], tmp_path: Path) -> None:
    def prune(**options: Any) -> nn.Module:
        model = network()
        with torch.no_grad():
            model[3].weight[::4, ::4] = 0.0
        nt.adaprune_(model, [batch + 0.5 for batch in images()], **{"n": 2, "m": 4, "include": ["3", "5"], **options})
        return model

    def stop(name: str, done: int, total: int) -> None:
        if done and name.endswith(".weight"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(resume=tmp_path, progress=stop)
    resumed, whole = prune(resume=tmp_path, **change), prune(**change)
    assert all(torch.equal(one, two) for one, two in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_layers_of_a_model_with_another_config_are_not_resumed(tmp_path: Path) -> None:
    """A config may say how a model computes what no module's name tells."""

    def stop(name: str, done: int, total: int) -> None:
        if done and name.endswith(".weight"):
            raise KeyboardInterrupt

    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.inner, self.config = network(), {"scale": scale}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.abs() ** self.config["scale"])  # type: ignore[no-any-return]

    with pytest.raises(KeyboardInterrupt):
        nt.adaprune_(Scaled(1.0), images(), 2, 4, resume=tmp_path, progress=stop)
    resumed, whole = Scaled(2.0), Scaled(2.0)
    nt.adaprune_(resumed, images(), 2, 4, resume=tmp_path)
    nt.adaprune_(whole, images(), 2, 4)
    assert all(torch.equal(one, two) for one, two in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_no_weight_that_autocast_has_cast_is_used_again() -> None:
    layer, x = nn.Linear(8, 8, bias=False), random(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nt.calibrate(layer, [x])
        assert torch.is_autocast_cache_enabled()
        with torch.no_grad():
            layer.weight.zero_()
        assert not layer(x).any()
    assert torch.is_autocast_cache_enabled()


def test_draws_go_on_from_block_to_block() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    draws, found = Draws(), list[torch.Tensor]()
    for _ in range(2):
        with draws.apart():
            found.append(torch.rand(1))
        torch.manual_seed(5)
    assert torch.equal(torch.cat(found), expected)


def test_mappings_of_other_keys_are_told_apart_and_nobody_else_may_look(tmp_path: Path) -> None:
    names = set()
    for value in ({"input_ids": 1}, {"inputs_embeds": 1}):
        store = Store.open(tmp_path / "layers", {})
        store.sign([value])
        names.add(store._place("weight").name)
    assert len(names) == 2
    assert (tmp_path / "layers").stat().st_mode & 0o777 == 0o700


def kept(folder: Path) -> tuple[Store, Saved, Path]:
    """A store with one layer, and its file."""
    store = Store.open(folder, {})
    saved = Saved(torch.randn(64, 64), torch.randn(64), {"name": "weight"})
    store.save("weight", saved)
    (file,) = folder.iterdir()
    return store, saved, file


def test_a_kept_layer_that_was_changed_is_none(tmp_path: Path) -> None:
    store, saved, file = kept(tmp_path)
    found, raw = store.load("weight"), file.read_bytes()
    assert found is not None
    assert torch.equal(found.weight, saved.weight)
    assert found.report == saved.report
    for place in (0, len(raw) // 4, len(raw) // 2, len(raw) - 1):
        changed = bytearray(raw)
        changed[place] ^= 0x40
        file.write_bytes(changed)
        assert store.load("weight") is None
    file.write_bytes(raw[:-1])
    assert store.load("weight") is None


def test_a_layer_that_cannot_be_kept_names_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    store, saved, file = kept(tmp_path)
    raw, old = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(raw) // 2, old[1]))  # as a full disk
    try:
        with pytest.raises(OSError, match=str(file.with_suffix(".new"))) as caught:
            store.save("weight", saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.__notes__ == ["layer 'weight' could not be kept"]
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == raw
    (tmp_path / "killed.new").touch()
    store.clear()
    assert not tmp_path.exists()


@pytest.mark.parametrize("version", ["9.9", journal.version()])
def test_layers_of_another_version_are_not_resumed(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done and name.endswith(".weight"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nt.adaprune_(network(), images(), 2, 4, sequential=False, resume=tmp_path, progress=stop)
    monkeypatch.setattr(journal, "version", lambda: version)
    treated: list[str] = []

    def told(name: str, done: int, total: int) -> None:
        treated.append(name)

    nt.adaprune_(network(), images(), 2, 4, sequential=False, resume=tmp_path, progress=told)
    assert ("0.weight" in treated) == (version == "9.9")
