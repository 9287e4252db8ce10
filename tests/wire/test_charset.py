"""Text comes out of DICOM bytes right, or marked as damaged; it never raises and never vanishes."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.charset import character_sets, codec_of, decode, encode_key

# PS3.5 Annexes H, I, J and K; the Greek, Russian and Polish ones are the bytes that devices of those countries write.
EXAMPLES = [
    (["ISO_IR 100"], b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
    (["ISO_IR 101"], b"Wa\xb3\xeasa^\xa3ukasz", "Wałęsa^Łukasz"),
    (["ISO_IR 126"], b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
    (["ISO_IR 144"], b"\xbb\xee\xda", "Люк"),
    (["ISO_IR 192"], "Wang^XiaoDong=王^小东".encode(), "Wang^XiaoDong=王^小东"),
    (["GB18030"], b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
    (
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    (
        ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    (
        ["", "ISO 2022 IR 149"],
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    (
        ["", "ISO 2022 IR 58"],
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        "Zhang^XiaoDong=张^小东=",
    ),
    (
        ["ISO 2022 IR 100", "ISO 2022 IR 144", "ISO 2022 IR 126"],
        b"Dionysios is \x1b-F\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2",
        "Dionysios is Διονυσιος",
    ),
]


@pytest.mark.parametrize(("sets", "value", "expected"), EXAMPLES)
def test_the_examples_of_the_standard_are_read_right(sets, value, expected):
    assert decode(value, sets, "PN") == expected


@pytest.mark.parametrize(
    "term",
    [
        "ISO_IR 100",
        "ISO IR 100",
        "ISO-IR 100",
        "iso_ir_100",
        "ISO 2022 IR 100",
        "ISO2022 IR100",
        "ISO_IR100",
        " ISO_IR 100 ",
    ],
)
def test_every_spelling_of_latin_1_is_latin_1(term):
    assert decode(b"J\xe9r\xf4me", [term]) == "Jérôme"


@pytest.mark.parametrize("term", ["ISO_IR 192", "ISO IR 192", "ISO 2022 IR 192", "UTF-8", "utf8"])
def test_every_spelling_of_utf_8_is_utf_8(term):
    assert decode("Łukasz".encode(), [term]) == "Łukasz"


def test_an_unknown_set_and_a_codec_that_is_no_text_are_ascii():
    assert {codec_of(term) for term in ("", "FOO", "ISO_IR 999", "rot13", "utf_16", "idna", "ISO8859-99")} == {"ascii"}


def test_undecodable_bytes_become_replacement_characters_and_the_rest_stays():
    assert decode(b"M\xfcller", []) == "M\ufffdller"
    assert decode(b"M\xfcller", ["ISO_IR 6"]) == "M\ufffdller"
    assert decode(b"M\xfcller^A", ["ISO_IR 192"]) == "M\ufffdller^A"
    assert decode(b"A\x1b%GB", ["ISO_IR 100"]) == "A\ufffd%GB"


def test_an_escape_to_an_undeclared_set_is_followed():
    assert decode(b"Hong=\x1b$)C\xc8\xab", ["ISO_IR 100"], "PN") == "Hong=홍"


def test_a_device_that_escapes_only_once_is_still_read():
    assert decode(b"=\x1b$)C\xc8\xab^\xb1\xe6\xb5\xbf", ["", "ISO 2022 IR 149"], "PN") == "=홍^길동"


def test_after_a_delimiter_the_first_set_is_back():
    greek, latin = b"\x1b-F\xc4", b"\xc4"
    assert decode(greek + b"^" + latin, ["ISO 2022 IR 100", "ISO 2022 IR 126"], "PN") == "Δ^Ä"
    assert decode(greek + b"^" + latin, ["ISO 2022 IR 100", "ISO 2022 IR 126"], "LO") == "Δ^Δ"
    assert decode(greek + b"\\" + latin, ["ISO 2022 IR 100", "ISO 2022 IR 126"], "LO") == "Δ\\Ä"


def test_a_backslash_that_is_half_a_letter_is_no_separator():
    assert "\\" not in decode("齖".encode("gb18030") if b"\\" in "齖".encode("gb18030") else b"\x81\x5c", ["GB18030"])


def test_a_stand_alone_set_ignores_the_other_sets():
    assert decode("é".encode(), ["ISO_IR 192", "ISO 2022 IR 87"]) == "é"
    assert decode(b"\xe9", ["ISO 2022 IR 100", "ISO_IR 192"]) == "é"


def test_the_default_of_the_node_counts_only_where_the_data_set_is_silent():
    assert character_sets(None, "ISO_IR 101") == ("ISO_IR 101",)
    assert character_sets("", "\\ISO 2022 IR 87") == ("", "ISO 2022 IR 87")
    assert character_sets("ISO_IR 100", "ISO_IR 101") == ("ISO_IR 100",)
    assert character_sets(["", "ISO 2022 IR 87"], "ISO_IR 101") == ("", "ISO 2022 IR 87")
    assert decode(b"\xa3ukasz", character_sets(None, "ISO_IR 101")) == "Łukasz"


@given(st.binary(max_size=40), st.lists(st.sampled_from([e[0][-1] for e in EXAMPLES] + ["", "FOO"]), max_size=3))
def test_no_bytes_make_it_raise(value, sets):
    assert isinstance(decode(value, sets, "PN"), str)


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\x1b"), max_size=30))
def test_ascii_is_itself_in_every_set(text):
    assert {decode(text.encode(), sets) for sets, _, _ in EXAMPLES} == {text}


def test_a_key_that_the_set_holds_goes_out_as_it_is():
    key = encode_key("Łukasz", "ISO_IR 101")
    assert (key.text, key.value, key.exact) == ("Łukasz", b"\xa3ukasz", True)


def test_letters_that_the_set_lacks_go_out_as_wildcards_and_the_caller_is_told():
    key = encode_key("Łukasz*", "ISO_IR 100")
    assert (key.text, key.value, key.exact) == ("?ukasz*", b"?ukasz*", False)
    assert encode_key("Ωμέγα", "").text == "?????"
    assert encode_key("¥", "ISO_IR 13").text == "?"


def test_a_decomposed_key_is_one_letter():
    assert encode_key("Z\u030cizka", "ISO_IR 101").value == b"\xaeizka"


@pytest.mark.parametrize(("sets", "value", "expected"), EXAMPLES)
def test_an_encoded_key_reads_back_as_itself(sets, value, expected):
    key = encode_key(expected, "\\".join(sets))
    assert key.exact
    assert decode(key.value, sets, "PN") == expected


@given(
    st.text(max_size=20),
    st.sampled_from(["", "ISO_IR 101", "ISO_IR 192", "ISO_IR 13", "\\ISO 2022 IR 149\\ISO 2022 IR 58", "GB18030"]),
)
def test_what_is_sent_reads_back_as_the_text_that_was_announced(text, sets):
    key = encode_key(text.replace("\x1b", ""), sets)
    assert decode(key.value, sets.split("\\"), "PN") == key.text


def test_a_misspelt_character_set_says_nothing_on_stderr():
    program = (
        "from pydicom.data import get_testdata_file; import gateway.wire.charset, pydicom, io\n"
        "from pydicom.dataset import Dataset\n"
        "ds = Dataset(); ds.SpecificCharacterSet = 'ISO_IR 192'; ds.PatientName = 'é'\n"
        "out = io.BytesIO(); ds.save_as(out, implicit_vr=True, little_endian=True)\n"
        "raw = out.getvalue().replace(b'ISO_IR 192', b'ISO-IR 192')\n"
        "print(pydicom.dcmread(io.BytesIO(raw), force=True).PatientName)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
