"""The filters of images/filters beside Pillow itself, and what they refuse."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image, ImageChops, ImageFilter, ImageOps

from images.filters import pictures
from images.filters.command import main
from images.filters.pictures import apply
from images.filters.registry import FILTERS, Refused, schema

ROOT = Path(__file__).parents[3]
SIZE = (64, 48)


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture in which no two corners are alike."""
    across, down = Image.linear_gradient("L").resize(size), Image.linear_gradient("L").rotate(90).resize(size)
    colours = Image.merge("RGB", (across, down, ImageChops.invert(across)))
    if mode == "RGBA":
        colours.putalpha(down)
    return colours if mode == "RGBA" else colours.convert(mode)


def saved(image: Image.Image, path: Path, **more: Any) -> Path:
    image.save(path, **more)
    return path


def opened(path: Path) -> Image.Image:
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    return image


def difference(one: Image.Image, other: Image.Image) -> float:
    """The greatest difference of any value of any pixel."""
    assert (one.mode, one.size) == (other.mode, other.size)
    extrema = ImageChops.difference(one, other).getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return max(band[1] for band in bands)  # type: ignore[index]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_grayscale_of_a_png_is_pillows(tmp_path: Path, mode: str) -> None:
    source = saved(picture(mode), tmp_path / "a.png")
    result = opened(apply(source, tmp_path / "out.png", {"filter": "grayscale"}))
    assert result.format == "PNG"
    assert difference(result.convert("L"), ImageOps.grayscale(picture(mode))) == 0
    if mode == "RGBA":
        assert difference(result.getchannel("A"), picture(mode).getchannel("A")) == 0


@pytest.mark.parametrize("params", [{}, {"radius": 0.0}, {"radius": 7}])
def test_blur_of_a_png_is_pillows_of_that_radius(tmp_path: Path, params: dict[str, Any]) -> None:
    source = saved(picture("RGBA"), tmp_path / "a.png")
    result = opened(apply(source, tmp_path / "out.png", {"filter": "blur"} | params))
    expected = picture("RGBA").filter(ImageFilter.GaussianBlur(params.get("radius", 2)))
    assert difference(result, expected) == 0


def test_a_jpeg_stays_one_and_is_as_near_as_its_quality_lets_it_be(tmp_path: Path) -> None:
    source = saved(picture(), tmp_path / "a.jpg", quality=95)
    result = opened(apply(source, tmp_path / "out.jpg", {"filter": "grayscale"}))
    assert result.format == "JPEG"
    assert difference(result, ImageOps.grayscale(opened(source))) < 8


@pytest.mark.parametrize(
    ("format_", "asked", "written"),
    [
        ("JPEG", "x.JPEG", "x.JPEG"), ("JPEG", "x.png", "x.jpg"), ("PNG", "x.png", "x.png"),
        ("PNG", "v1.2 end", "v1.2 end.png"),
        ("GIF", "x.gif", "x.png"), ("BMP", "x.bmp", "x.png"), ("TIFF", "x.tiff", "x.png"), ("WEBP", "x", "x.png"),
        ("JPEG2000", "x.jp2", "x.png"), ("PPM", "x.ppm", "x.png"), ("ICO", "x.ico", "x.png"),
    ],
)  # fmt: skip
def test_other_formats_become_png_and_the_name_says_so(tmp_path: Path, format_: str, asked: str, written: str) -> None:
    source = saved(picture(), tmp_path / "source", format=format_)
    path = apply(source, tmp_path / "out" / asked, {"filter": "grayscale"})
    assert path == tmp_path / "out" / written
    assert opened(path).format == ("JPEG" if format_ == "JPEG" else "PNG")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_is_marked_as_turned_comes_out_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = saved(picture(), tmp_path / "a.jpg", exif=exif, quality=95)
    result = opened(apply(source, tmp_path / "out.jpg", {"filter": "blur", "radius": 0}))
    upright = ImageOps.exif_transpose(opened(source))
    assert result.getexif().get(0x0112, 1) == 1
    assert difference(result, upright) < 16
    assert result.size == (SIZE if orientation < 5 else SIZE[::-1])


def test_of_an_animation_the_first_frame_counts_and_transparency_stays(tmp_path: Path) -> None:
    frames = [picture("RGBA").convert("P"), Image.new("P", SIZE)]
    source = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:], transparency=3)
    expected = opened(source).convert("RGBA").convert("LA")
    result = opened(apply(source, tmp_path / "out.gif", {"filter": "grayscale"}))
    assert getattr(result, "n_frames", 1) == 1
    assert difference(result, expected) == 0


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "I;16", "F", "YCbCr"])
def test_every_mode_is_taken(tmp_path: Path, mode: str) -> None:
    image = Image.new("I;16", SIZE, 40_000) if mode == "I;16" else picture("RGB").convert(mode)
    source = saved(image, tmp_path / "source", format="PNG" if mode == "I;16" else "TIFF")
    for name in FILTERS:
        result = opened(apply(source, tmp_path / "out.png", {"filter": name}))
        assert result.size == SIZE
    if mode == "I;16":
        assert result.convert("L").getpixel((5, 5)) == 40_000 // 256


def png() -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no picture"),
        (b"%PDF-1.7 not a picture", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (png()[:100], "damaged or cut off"),
        (png()[:60] + bytes(40) + png()[100:], "damaged or cut off"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(tmp_path: Path, body: bytes, why: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(body)
    with pytest.raises(Refused, match=why):
        apply(source, tmp_path / "out.png", {"filter": "grayscale"})
    assert not (tmp_path / "out.png").exists()


def test_a_small_file_that_would_unfold_to_much_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(Image.new("1", (20_000, 20_000)), tmp_path / "bomb.png")
    assert source.stat().st_size < 100_000
    with pytest.raises(Refused, match="pixels"):
        apply(source, tmp_path / "out.png", {"filter": "grayscale"})
    monkeypatch.setattr(pictures, "PIXELS_MAX", 3000)
    with pytest.raises(Refused, match="64 by 48 pixels"):
        apply(saved(picture(), tmp_path / "a.png"), tmp_path / "out.png", {"filter": "grayscale"})


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({}, "filter: there is no None"),
        ({"filter": "sepia"}, "there is no 'sepia'; there are grayscale, blur"),
        ({"filter": "blur", "radius": -1}, "radius: -1 is not between 0 and 100"),
        ({"filter": "blur", "radius": "2"}, "radius: '2' is no number"),
        ({"filter": "blur", "radius": True}, "radius: True is no number"),
        ({"filter": "blur", "size": 3}, "size: no filter has this parameter"),
    ],
)
def test_parameters_off_the_schema_are_refused_by_name(tmp_path: Path, params: dict[str, Any], why: str) -> None:
    source = saved(picture(), tmp_path / "a.png")
    with pytest.raises(Refused, match=why):
        apply(source, tmp_path / "out.png", params)
    assert not jsonschema.Draft202012Validator(schema()).is_valid(params)


def test_the_schema_is_one_and_takes_what_the_filters_take() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    assert validator.is_valid({"filter": "grayscale"})
    assert validator.is_valid({"filter": "blur", "radius": 2.5})
    assert schema()["properties"]["radius"]["default"] == 2.0


def test_by_hand_a_folder_is_filtered_and_what_fails_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    saved(picture(), tmp_path / "in" / "a.png")
    saved(picture(), tmp_path / "in" / "deep" / "b.jpg")
    (tmp_path / "in" / "c.txt").write_text("no picture")
    assert main(["blur", str(tmp_path / "in"), str(tmp_path / "out"), "--radius", "3"]) == 1
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")) == [
        "a.png", "deep/b.jpg",
    ]  # fmt: skip
    expected = picture().filter(ImageFilter.GaussianBlur(3))
    assert difference(opened(tmp_path / "out" / "a.png"), expected) == 0
    assert "c.txt: it is no picture of a format that is known" in capsys.readouterr().err


def test_as_a_warm_worker_it_answers_for_each_item(tmp_path: Path) -> None:
    params = tmp_path / "params.json"
    params.write_text('{"filter": "blur"}')
    good, bad = saved(picture(), tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_text("no picture")
    orders = [
        {"item": "ia", "in": str(good), "out": str(tmp_path / "out" / "1.png"), "params": {}},
        {"item": "ib", "in": str(bad), "out": str(tmp_path / "out" / "2.png"), "params": {}},
        {"item": "ic", "in": str(good), "out": str(tmp_path / "out" / "3.png"), "params": {"radius": 900}},
        {"item": "id", "in": None, "out": str(tmp_path / "out" / "4.png"), "params": {}},
        {"item": "ie", "in": str(good), "out": str(tmp_path / "out" / "5.png"), "params": {"filter": "grayscale"}},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "images.filters"], input="".join(f"{json.dumps(one)}\n" for one in orders), text=True,
        capture_output=True, check=True, cwd=ROOT,
        env={"WHERRY_WORKER": "warm", "WHERRY_PARAMS": str(params), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "::item ia ok",
        "::item ib failed it is no picture of a format that is known",
        "::item ic failed radius: 900 is not between 0 and 100",
        "::item id failed the item has no file",
        "::item ie ok",
    ]
    assert opened(tmp_path / "out" / "1.png").mode == "RGB"
    assert opened(tmp_path / "out" / "5.png").mode == "L"
