"""Pictures of every kind are opened, and become the patches Hugging Face's processor makes."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from crem_jax.data.images.decode import PictureError, open_picture, peek
from crem_jax.data.images.patches import fill_grid, fit_size, patchify, resize

RED, WHITE = (255, 0, 0), (255, 255, 255)


def _random_pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pixel(picture, x=0, y=0):
    image = open_picture(picture)
    assert image.mode == "RGB"
    return image.getpixel((x, y))


# --- opening -------------------------------------------------------------------------------------


def test_path_bytes_image_and_array_open_alike(tmp_path):
    pixels = _random_pixels(7, 5)
    image = Image.fromarray(pixels)
    path = tmp_path / "a.png"
    image.save(path)
    for picture in (path, str(path), path.read_bytes(), image, pixels):
        np.testing.assert_array_equal(np.asarray(open_picture(picture)), pixels)


def test_opening_does_not_alias_the_callers_image():
    image = Image.new("RGB", (2, 2), RED)
    open_picture(image).putpixel((0, 0), WHITE)
    assert image.getpixel((0, 0)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = _random_pixels(4, 6, seed=orientation)
    # How a camera held that way stores the upright picture (the inverse of what EXIF prescribes).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = _encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    once = open_picture(encoded)
    np.testing.assert_array_equal(np.asarray(once), upright)
    np.testing.assert_array_equal(np.asarray(open_picture(once)), upright)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_in_a_header_is_that_of_the_upright_picture(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = _encoded(Image.new("RGB", (40, 20), RED), kind, exif=exif)
    prepared, size = peek(encoded)
    assert size == open_picture(prepared).size[::-1] == open_picture(encoded).size[::-1]


def test_damaged_exif_does_not_spoil_the_picture():
    encoded = _encoded(Image.new("RGB", (3, 2), RED), "PNG", exif=b"Exif\0\0no such thing")
    assert _pixel(encoded) == RED


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    options = {} if kind != "WEBP" else {"lossless": True}
    encoded = _encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert _pixel(encoded) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_alpha_is_laid_on_white(mode):
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    step = {"La": "LA", "PA": "P"}.get(mode, "RGBA")
    image = clear.convert(step).convert(mode)
    if mode == "PA":
        image.putalpha(0)
    assert _pixel(image) == WHITE


def test_half_transparent_black_becomes_grey():
    assert _pixel(Image.new("RGBA", (1, 1), (0, 0, 0, 128))) == (127, 127, 127)


def test_transparent_colour_of_palette_grey_and_rgb_files_becomes_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    assert _pixel(_encoded(palette, "PNG", transparency=0)) == WHITE
    assert _pixel(_encoded(palette, "PNG", transparency=0), x=1) == RED
    assert _pixel(_encoded(palette, "GIF", transparency=0)) == WHITE
    assert _pixel(_encoded(Image.new("L", (1, 1), 7), "PNG", transparency=7)) == WHITE
    rgb = _encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert _pixel(rgb) == WHITE


def test_cmyk_jpeg_becomes_rgb():
    encoded = _encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    np.testing.assert_allclose(_pixel(encoded), RED, atol=6)


@pytest.mark.parametrize(
    ("value", "dtype", "kind"),
    [
        (128 * 257, np.uint16, "PNG"),
        (128 * 257, np.int32, "TIFF"),
        (128, np.int32, "TIFF"),
        (128.0, np.float32, "TIFF"),
        (128 / 255, np.float32, "TIFF"),
    ],
)
def test_deep_grey_files_and_arrays_are_scaled_to_eight_bits(value, dtype, kind):
    array = np.full((3, 2), value, dtype)
    assert _pixel(array) == (128, 128, 128)
    assert _pixel(_encoded(Image.fromarray(array), kind)) == (128, 128, 128)


def test_big_endian_sixteen_bit_images_are_scaled_too():
    image = Image.frombytes("I;16B", (1, 1), bytes([0, 200]))
    assert _pixel(image) == (1, 1, 1)


def test_one_bit_and_grey_images_become_rgb():
    assert _pixel(Image.new("1", (1, 1), 1)) == WHITE
    assert _pixel(Image.new("L", (1, 1), 9)) == (9, 9, 9)
    assert _pixel(np.array([[True]])) == WHITE


def test_arrays_with_one_and_four_channels_are_grey_and_rgba():
    assert _pixel(np.full((2, 2, 1), 9, np.uint8)) == (9, 9, 9)
    assert _pixel(np.zeros((2, 2, 4), np.uint8)) == WHITE


# --- what is wrong is said -----------------------------------------------------------------------


def _refusal(picture, **options):
    with pytest.raises(PictureError) as caught:
        open_picture(picture, **options)
    return str(caught.value)


def test_missing_picture_names_the_file(tmp_path):
    assert _refusal(tmp_path / "a.png") == f"{tmp_path / 'a.png'}: does not exist"


def test_folder_is_named_as_one(tmp_path):
    assert _refusal(tmp_path) == f"{tmp_path}: is a folder, not a picture"


def test_empty_pictures_are_refused(tmp_path):
    (tmp_path / "a.png").touch()
    assert _refusal(tmp_path / "a.png") == f"{tmp_path / 'a.png'}: is empty"
    assert _refusal(b"") == "<bytes>: is empty"
    array = np.zeros((0, 4, 3), np.uint8)
    assert _refusal(array) == "<array of shape (0, 4, 3)>: has no pixels, its size is 4x0"
    image = Image.new("RGB", (0, 3))
    assert _refusal(image) == "<PIL image of mode RGB>: has no pixels, its size is 0x3"


def test_text_file_is_not_a_picture(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not a picture, whatever its name")
    message = f"{path}: is not a picture: no known format, or cut off in its header"
    assert _refusal(path) == message


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("part", [0.5, 0.98])
def test_truncated_picture_names_the_file(kind, part, tmp_path):
    encoded = _encoded(Image.fromarray(_random_pixels(40, 50)), kind)
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded[: int(len(encoded) * part)])
    assert re.match(f"{re.escape(str(path))}: is truncated or damaged: .", _refusal(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_damaged_picture_whose_size_was_read_before_is_refused_all_the_same(kind, rng):
    whole = _encoded(Image.fromarray(_random_pixels(40, 30)), kind)
    for _ in range(20):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole) // 4, len(whole), 3):
            damaged[place] ^= 255
        complaints = []
        for prepared in (lambda data: data, lambda data: peek(data)[0]):
            try:
                open_picture(prepared(bytes(damaged)))
                complaints.append(None)
            except PictureError as error:
                complaints.append(str(error).partition(":")[2])
        assert bool(complaints[0]) == bool(complaints[1])


def test_picture_truncated_before_it_reached_us_is_refused():
    encoded = _encoded(Image.fromarray(_random_pixels(40, 50)), "PNG")
    image = Image.open(io.BytesIO(encoded[:500]))
    assert ": is truncated or damaged: " in _refusal(image)


def test_decompression_bomb_is_refused_before_decoding():
    encoded = _encoded(Image.new("1", (20_000, 10_000)), "PNG")
    assert _refusal(encoded).startswith("<bytes>: is too large, ")
    too_large = "is too large, 5x4 = 20 pixels; expected at most 19"
    assert _refusal(_random_pixels(4, 5), max_pixels=19).endswith(too_large)
    assert _refusal(Image.new("RGB", (5, 4)), max_pixels=19).endswith(too_large)


def test_arrays_that_are_no_picture_are_refused():
    message = "<array of shape (3, 8, 8)>: is not a picture; expected [H, W, 3], [H, W, 4] or"
    assert _refusal(np.zeros((3, 8, 8), np.uint8)).startswith(message)
    assert _refusal(np.zeros((2, 2), complex)).endswith("its values are of type complex128")
    assert _refusal(np.full((2, 2), np.nan)).endswith("has values that are not finite")


def test_other_types_are_refused():
    assert _refusal(7).startswith("<int>: is not a picture; expected a path, encoded bytes")


# --- sizes ---------------------------------------------------------------------------------------


def test_fit_size_is_smart_resize():
    rng = np.random.default_rng()
    compared = 0
    for _ in range(5_000):
        height, width = (int(2 ** rng.uniform(0, 14)) for _ in range(2))
        patch, merge = int(rng.choice([4, 8, 14, 16])), int(rng.choice([1, 2, 3]))
        unit = (patch * merge) ** 2
        low = int(rng.integers(1, 40 * unit))
        high = int(rng.integers(max(low, unit), 2_000 * unit))
        if max(height, width) / min(height, width) > 200:
            continue
        expected = smart_resize(height, width, patch * merge, low, high)
        limits = {"patch": patch, "merge": merge, "min_pixels": low, "max_pixels": high}
        assert fit_size(height, width, **limits) == expected, (height, width, limits)
        compared += 1
    assert compared > 3_000


@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 20_000), (20_000, 20), (1, 60_000)])
def test_extreme_sizes_fit_as_if_no_longer_than_200_to_1(height, width):
    limits = {"patch": 14, "merge": 2, "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}
    fitted = fit_size(height, width, **limits)
    shortest = max(height, width) // 200
    within = max(height, shortest), max(width, shortest)
    assert fitted == smart_resize(*within, 28, limits["min_pixels"], limits["max_pixels"])
    pixels = resize(open_picture(np.zeros((height, width, 3), np.uint8)), *fitted)
    assert len(patchify(pixels, 14, 2)[0]) == fitted[0] * fitted[1] // 14**2


def test_hard_max_holds_and_leaves_fitting_sizes_alone():
    rng = np.random.default_rng()
    for _ in range(2_000):
        height, width = (int(2 ** rng.uniform(0, 14)) for _ in range(2))
        high = int(rng.integers(16 * 16, 100 * 16 * 16))
        limits = {"patch": 8, "merge": 2, "max_pixels": high}
        limits["min_pixels"] = int(rng.integers(1, high + 1))
        soft, hard = (fit_size(height, width, **limits, hard_max=h) for h in (False, True))
        assert hard[0] * hard[1] <= high and min(hard) >= 16
        assert hard == soft or soft[0] * soft[1] > high


def test_impossible_sizes_are_refused():
    limits = {"patch": 14, "merge": 2, "min_pixels": 1, "max_pixels": 28 * 28}
    with pytest.raises(ValueError, match=r"a picture of 0x5 pixels .* has no pixels"):
        fit_size(0, 5, **limits)
    for low, high in [(0, 1000), (2000, 1000), (1, 28 * 28 - 1)]:
        with pytest.raises(ValueError, match=f"min_pixels={low} and max_pixels={high} leave no"):
            fit_size(5, 5, patch=14, merge=2, min_pixels=low, max_pixels=high)


# --- patches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (61, 47), (300, 400), (1000, 750)])
@pytest.mark.parametrize(("patch", "merge"), [(14, 2), (8, 2), (8, 1)])
def test_patches_are_those_of_hugging_face(size, patch, merge):
    image = Image.fromarray(_random_pixels(*size, seed=None))
    low, high = 4 * (patch * merge) ** 2, 300 * (patch * merge) ** 2
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=merge,
        size={"shortest_edge": low, "longest_edge": high},
    )
    theirs = processor(image, return_tensors="np")
    height, width = fit_size(*size, patch=patch, merge=merge, min_pixels=low, max_pixels=high)
    patches, positions = patchify(resize(open_picture(image), height, width), patch, merge)

    assert theirs["image_grid_thw"].tolist() == [[1, height // patch, width // patch]]
    frames = theirs["pixel_values"].reshape(len(patches), 3, 2, patch * patch)
    mean, std = (np.array(v)[:, None] for v in (processor.image_mean, processor.image_std))
    ours = (patches.reshape(len(patches), 3, patch * patch) / 255 - mean) / std
    assert patches.dtype == np.uint8 and positions.dtype == np.int32
    for frame in (0, 1):
        np.testing.assert_allclose(frames[:, :, frame], ours, atol=1e-5)


def test_positions_are_those_of_hugging_faces_vision_rotary():
    torch = pytest.importorskip("torch")
    vision = pytest.importorskip("transformers.vision_utils")
    for rows, columns, merge in [(4, 6, 2), (6, 3, 3), (5, 7, 1), (2, 2, 2)]:
        grid = torch.tensor([[1, rows, columns]])
        theirs = vision.get_vision_position_ids(grid, merge).numpy()
        pixels = np.zeros((rows * 4, columns * 4, 3), np.uint8)
        np.testing.assert_array_equal(patchify(pixels, 4, merge)[1], theirs)


def test_pixels_of_another_shape_or_type_are_refused():
    message = "cannot patchify pixels of shape (28, 30, 3); expected [H, W, 3] with H and W"
    with pytest.raises(ValueError, match=re.escape(message)):
        patchify(np.zeros((28, 30, 3), np.uint8), 14, 2)
    with pytest.raises(ValueError, match="cannot patchify float32 pixels; expected uint8"):
        patchify(np.zeros((28, 28, 3), np.float32), 14, 2)


@pytest.mark.parametrize(
    ("size", "to"), [((375, 500), (392, 532)), ((480, 640), (448, 300)), ((800, 37), (1120, 28))]
)
def test_the_fast_resize_is_pillows_but_for_a_step_or_two(size, to, rng):
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    apart = np.abs(resize(image, *to).astype(int) - resize(image, *to, fast=True))
    assert apart.max() <= 2 and np.mean(apart > 0) < 0.02


def photo(rng: np.random.Generator, height: int, width: int, **options) -> bytes:
    """A smooth picture as JPEG."""
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def test_a_large_jpeg_is_decoded_small_and_hardly_differs(rng):
    data = photo(rng, 1500, 2000)
    whole, near = open_picture(data), open_picture(data, near=(300, 400))
    assert whole.size == (2000, 1500) and near.size == (500, 375)
    apart = np.abs(resize(whole, 300, 400).astype(int) - resize(near, 300, 400))
    assert apart.mean() < 1.5 and np.percentile(apart, 99) <= 8
    assert open_picture(data, near=(1400, 400)).size == (2000, 1500)


@pytest.mark.parametrize("turned", [1, 6])
def test_a_peek_reads_the_upright_size_and_the_pixels_stay_the_same(rng, tmp_path, turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(rng, 30, 50, exif=exif))
    picture, size = peek(path)
    assert size == ((30, 50) if turned == 1 else (50, 30))
    expected = np.asarray(open_picture(path))
    np.testing.assert_array_equal(np.asarray(open_picture(picture)), expected)
    assert expected.shape[:2] == size
    near = open_picture(path.read_bytes(), near=(9, 9)) if turned == 6 else None
    assert near is None or near.height > near.width


def test_a_peek_names_what_is_no_picture(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("hello")
    with pytest.raises(PictureError, match=r"text\.png: is not a picture"):
        peek(path)
    with pytest.raises(PictureError, match="is too large"):
        peek(Image.new("L", (60, 60)), max_pixels=3599)


def test_a_filled_grid_has_the_room_and_the_aspect_of_the_picture(rng):
    for _ in range(500):
        height, width, tokens = (int(x) for x in np.exp(rng.uniform(0, 8, 3)).astype(int))
        rows, columns = fill_grid(height, width, tokens)
        assert rows >= 1 and columns >= 1 and rows * columns <= tokens
        aspect = width / height
        if 1 / 8 < aspect < 8 and tokens >= 128:
            assert rows * columns >= 0.75 * tokens, (height, width, tokens)
            least, most = (columns - 0.5) / (rows + 0.5), (columns + 0.5) / (rows - 0.5)
            assert least - 1e-9 < aspect < most + 1e-9
