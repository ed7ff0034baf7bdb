"""Volumes: resampled, changed, learned from and explained along all three of their axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import Dataset, Sequence

from pipelines import augment, describe, images, network, predict, protocol, synthetic, train
from pipelines.images import ImageRefused, to_network_input
from pipelines.protocol import InputSpec
from workers import translate

from .test_images import dicom

SHAPE = (12, 16, 16)
SPEC = InputSpec(depth=12, rows=16, columns=16)
DOCUMENT: dict[str, Any] = {
    "line": "nodules",
    "title": "Nodules among vessels",
    "intended_use": "To test the trainer on volumes that a computer has drawn.",
    "classes": ["vessels", "nodule"],
    "input": {"depth": 12, "rows": 16, "columns": 16},
    "recipe": {"epochs": 2, "batch_size": 16, "threads": 1, "randomise": 0.3},
}


def cases(n: int, *, seed: int) -> train.Cases:
    drawn, labels = synthetic.volumes(n, rng=np.random.default_rng(seed), shape=SHAPE)
    return train.Cases(
        images=to_network_input(drawn, SPEC),
        labels=labels,
        sites=np.full(n, "a"),
        label_since=np.full(n, 1),
    )


def a_model(name: str, shape: tuple[int, int, int]) -> predict.Model:
    asked = protocol.from_document(
        {
            **DOCUMENT,
            "input": dict(zip(("depth", "rows", "columns"), shape, strict=True)),
            "recipe": {"network": name},
        }
    )
    architecture = network.architecture_for(asked)
    torch.manual_seed(2)  # as in test_predict: some draws speak for neither class anywhere
    metadata = {
        "architecture": architecture.document(),
        "classes": list(asked.classes),
        "positive": asked.positive,
        "temperature": 1.0,
        "log_prior": [-0.69, -0.69],
        "operating_point": {"threshold": 0.5},
    }
    return predict.Model(network.build(architecture), metadata)


def test_a_protocol_of_images_says_nothing_of_depth_and_keeps_its_digest() -> None:
    flat = protocol.from_document({**DOCUMENT, "input": {"rows": 28, "columns": 28}})
    assert flat.document()["input"] == {"channels": 1, "rows": 28, "columns": 28}
    assert "depth" not in network.architecture_for(flat).document()
    assert protocol.from_document(DOCUMENT).document()["input"]["depth"] == 12


def test_a_protocol_of_coloured_or_endless_volumes_is_refused() -> None:
    for asked, words in (
        ({"channels": 3, "depth": 12, "rows": 16, "columns": 16}, "volumes are grey"),
        ({"depth": 512, "rows": 1024, "columns": 1024}, "is the most"),
    ):
        with pytest.raises(protocol.ProtocolError, match=words):
            protocol.from_document({**DOCUMENT, "input": asked})


def test_shrinking_a_volume_keeps_its_mean_and_gives_each_voxel_the_mean_of_those_it_covers() -> None:
    volume = np.random.default_rng(0).integers(0, 65536, (24, 32, 48), dtype=np.uint16)
    ready = to_network_input([volume], SPEC)
    assert ready.shape == (1, 1, 12, 16, 16)
    expected = (volume / 65535.0).reshape(12, 2, 16, 2, 16, 3).mean(axis=(1, 3, 5))
    assert np.allclose(ready[0, 0], expected, atol=1e-5)


def test_enlarging_a_volume_is_linear_along_each_axis() -> None:
    ramp = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None] * 40, (6, 16, 16))
    ready = to_network_input([np.ascontiguousarray(ramp)], SPEC)[0, 0]
    assert np.ptp(ready, axis=(1, 2)).max() < 1e-6
    assert np.allclose(np.diff(ready[1:-1, 0, 0]), 20.0 / 255.0, atol=1e-5)


def test_volumes_of_the_networks_own_size_are_only_scaled_and_a_stack_is_as_good_as_a_list() -> None:
    drawn, _ = synthetic.volumes(3, rng=np.random.default_rng(0), shape=SHAPE)
    assert (to_network_input(drawn, SPEC)[:, 0] == drawn.astype(np.float32) / np.float32(255.0)).all()
    assert (to_network_input(list(drawn), SPEC) == to_network_input(drawn, SPEC)).all()


def test_an_image_is_no_volume_and_a_volume_no_image() -> None:
    flat = InputSpec(rows=16, columns=16)
    for pixels, spec, code, words in (
        (np.zeros((12, 16, 16), np.uint8), flat, "not-single-frame", "send one image"),
        (np.zeros((16, 16), np.uint8), SPEC, "not-a-volume", "send a multi-frame DICOM"),
        (np.zeros((16, 16, 3), np.uint8), SPEC, "not-a-volume", "send a multi-frame DICOM"),
    ):
        with pytest.raises(ImageRefused, match=words) as refused:
            to_network_input([pixels], spec)
        assert refused.value.code == code


def test_a_volume_survives_its_stored_form_and_what_is_none_is_refused() -> None:
    volume = np.random.default_rng(0).integers(0, 65536, SHAPE, dtype=np.uint16)
    assert (images.from_npy(images.npy_bytes(volume)) == volume).all()
    for shape, code in (((1, 16, 16), "empty"), ((12, 16, 4), "empty"), ((2, 3, 12, 16), "not-single-frame")):
        with pytest.raises(ImageRefused) as refused:
            images.from_npy(images.npy_bytes(np.zeros(shape, np.uint8)))
        assert refused.value.code == code


def test_a_volume_of_too_many_voxels_is_refused_before_anything_is_allocated() -> None:
    header = images.npy_bytes(np.zeros(SHAPE, np.uint8))[:128].replace(b"(12, 16, 16)", b"(900,900,900)")
    with pytest.raises(ImageRefused, match="40 million voxels") as refused:
        images.from_npy(header)
    assert refused.value.code == "too-many-pixels"


@pytest.mark.parametrize("change", ["acquisition", "another_scanner"])
def test_changed_volumes_keep_shape_and_range_and_repeat_themselves(change: str) -> None:
    volumes = torch.from_numpy(cases(6, seed=0).images)

    def changed(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        if change == "acquisition":
            return augment.acquisition(volumes, generator=generator)
        return augment.another_scanner(volumes, generator=generator, share=1.0)

    once = changed(1)
    assert once.shape == volumes.shape
    assert 0.0 <= float(once.min()) <= float(once.max()) <= 1.0
    assert torch.equal(once, changed(1))
    assert not torch.equal(once, changed(2))
    assert all(not torch.equal(one, other) for one, other in zip(once, volumes, strict=True))


def test_a_turn_of_a_flat_volume_keeps_lengths() -> None:
    volumes = torch.zeros(64, 1, 8, 64, 64)
    volumes[:, :, 3:5, 22:42, 22:42] = 1.0  # a plate
    quiet = augment.Strength(shift=0.0, zoom=0.0, gamma=0.0, contrast=0.0, brightness=0.0, noise=0.0)
    turned = augment.acquisition(volumes, generator=torch.Generator().manual_seed(0), strength=quiet)
    before, after = volumes.sum(dim=(1, 2, 3, 4)), turned.sum(dim=(1, 2, 3, 4))
    # Where the sides of the grid were taken for equal, a tilt of ten degrees would push the plate out at 8 slices.
    assert float((after / before - 1.0).abs().max()) < 0.1
    assert not torch.equal(volumes, turned)


def test_training_on_volumes_repeats_itself_and_goes_on_where_it_was_stopped(tmp_path: Any) -> None:
    asked = protocol.from_document(DOCUMENT)
    learnt, tuned = cases(32, seed=0), cases(24, seed=1)

    def run(**named: Any) -> train.Trained:
        return train.fit(learnt, tuned, protocol=asked, strategy="full", seed=3, **named)

    class Stopped(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    whole = run()
    with pytest.raises(Stopped):
        run(checkpoints=tmp_path, tell=stop)
    resumed = run(checkpoints=tmp_path)
    assert network.save_weights(resumed.module) == network.save_weights(whole.module)
    assert network.save_weights(run().module) == network.save_weights(whole.module)
    assert whole.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [12, 16, 16]
    assert network.from_document(whole.metadata["architecture"]).depth == 12
    assert describe.bundle(asked, version="x")["network_data_format"]["inputs"]["image"]["num_channels"] == 1


def test_nodules_are_told_from_vessels_and_the_heat_map_is_hottest_at_the_nodule() -> None:
    asked = protocol.from_document({**DOCUMENT, "recipe": {**DOCUMENT["recipe"], "epochs": 10, "randomise": 0.0}})
    trained = train.fit(cases(256, seed=0), cases(64, seed=1), protocol=asked, strategy="full", seed=0)
    model = predict.Model(trained.module, trained.metadata)
    unseen = cases(100, seed=2)
    right = (model.decided(model.scores(unseen.images)) == unseen.labels).mean()
    assert right >= 0.9

    volume = np.full(SHAPE, 0.2, np.float32)
    volume[2:6, 9:13, 3:7] += 0.6
    heat = model.heat_map(volume[None], 1)
    assert heat.shape == SHAPE
    assert heat.max() == 1.0
    middle = np.indices(SHAPE)[:, heat > 0.5].mean(axis=1)
    assert (np.abs(middle - [4.0, 11.0, 5.0]) < [3.0, 4.0, 4.0]).all()

    alike = []
    for seed in range(5):  # one draw may look there by chance
        torch.manual_seed(seed)
        other = predict.Model(network.build(model.architecture), trained.metadata).heat_map(volume[None], 1)
        alike.append(np.corrcoef(heat.ravel(), other.ravel())[0, 1] if other.max() > 0.0 else 0.0)
    assert np.median(alike) < 0.5, alike


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("small_cnn", 16),
        ("medium_cnn", 16),
        ("resnet18", 32),
        ("seresnet50", 32),
        ("densenet121", 32),
        ("vit_tiny", 28),
        ("efficientnet_b0", 64),
    ],
)
def test_a_network_takes_volumes_and_its_heat_map_covers_them(name: str, side: int) -> None:
    model = a_model(name, (side, side, side))
    volume = np.random.default_rng(1).random((1, side, side, side), dtype=np.float32)
    scores = model.scores(volume[None])
    assert scores.shape == (1, 2)
    heat = model.heat_map(volume, 1)
    assert heat.shape == (side, side, side)
    assert 0.0 <= heat.min() <= heat.max() <= 1.0
    assert (model.scores(volume[None]) == scores).all()


def multi_frame(pixels: NDArray[np.uint16], **attributes: object) -> bytes:
    """A grey multi-frame DICOM object as a secondary capture; keyword arguments set further attributes."""
    return dicom(pixels[0], bits=12, **{"NumberOfFrames": len(pixels), "PixelData": pixels.tobytes(), **attributes})


def enhanced(pixels: NDArray[np.uint16], *, slopes: tuple[float, ...] = (1.0,), apart: float = 2.5) -> bytes:
    """One whose spacing, rescale, window and places are in functional groups, as in Enhanced CT."""
    measures, window = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 2.5
    window.WindowCenter, window.WindowWidth = 50.0, 401.0
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.FrameVOILUTSequence = Sequence([measures]), Sequence([window])
    frames = []
    for number in range(len(pixels)):
        place, rescale, frame = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0.0, 0.0, number * apart]
        rescale.RescaleSlope, rescale.RescaleIntercept = slopes[number % len(slopes)], -1024.0
        frame.PlanePositionSequence = Sequence([place])
        frame.PixelValueTransformationSequence = Sequence([rescale])
        frame.PatientName = "Doe^Jane"
        frames.append(frame)
    return multi_frame(
        pixels,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )


def slices(seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 4096, SHAPE, dtype=np.uint16)


def test_the_frames_of_a_dicom_object_are_the_depth_of_a_volume() -> None:
    pixels = slices()
    decoded = images.decode(multi_frame(pixels, SpacingBetweenSlices=3.0, PixelSpacing=[0.5, 0.25]))
    assert decoded.pixels.shape == SHAPE
    assert (decoded.pixels == np.round(pixels / 4095.0 * 65535.0)).all()
    assert decoded.attributes["NumberOfFrames"] == 12
    assert decoded.attributes["SpacingBetweenSlices_mm"] == 3.0
    assert translate._spacing(decoded.attributes) == (3.0, 0.5, 0.25)
    assert "Doe" not in str(decoded.attributes)


def test_an_enhanced_object_is_rescaled_and_windowed_by_its_functional_groups() -> None:
    pixels = slices()
    decoded = images.decode(enhanced(pixels))
    hounsfield = pixels.astype(np.float64) - 1024.0
    expected = np.clip((hounsfield - 49.5) / 400.0 + 0.5, 0.0, 1.0)
    assert np.abs(decoded.pixels / 65535.0 - expected).max() < 1e-4
    assert translate._spacing(decoded.attributes) == (2.5, 0.5, 0.25)
    assert "Doe" not in str(decoded.attributes)


def test_frames_that_are_no_single_grey_volume_are_refused() -> None:
    pixels = slices()
    for data, words in (
        (enhanced(pixels, slopes=(1.0, 2.0)), "the frames differ in RescaleSlope"),
        (enhanced(pixels, apart=0.0), "several frames lie in one place"),
        (multi_frame(pixels)[:-100], "bytes of pixels where|cannot be read"),
        (multi_frame(pixels, NumberOfFrames=8000, Rows=4000, Columns=4000), "40 million voxels"),
        (multi_frame(pixels, BurnedInAnnotation="YES"), "burned into the pixels"),
    ):
        with pytest.raises(ImageRefused, match=words):
            images.decode(data)
