"""Attacks made by hand, one format after the other: each spoils a pair of models, or the recipe.

An attack is a function that takes the folder with ``a``, ``b`` and ``recipe.yml``; its name says what it
tries. What must come of each is the same for all: see ``test_hostile.py``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from checkpoints_on_disk import change_config, write_json

Attack = Callable[[Path], None]

ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        assert name not in ATTACKS
        ATTACKS[name] = function
        return function

    return add


def several(**attacks: Attack) -> None:
    for name, function in attacks.items():
        attack(name.replace("_", " "))(function)


# -- safetensors -------------------------------------------------------------------------------------


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / "a/model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(folder: Path, header: bytes, body: bytes = b"", length: int | None = None) -> None:
    stated = len(header) if length is None else length
    whole = stated.to_bytes(8, "little") + header + body
    (folder / "a/model.safetensors").write_bytes(whole)


def entry(**changes: Any) -> Attack:
    """Changes of the entry of the first tensor."""

    def made(folder: Path) -> None:
        header, body = header_of(folder)
        first = next(name for name in header if name != "__metadata__")
        header[first] |= changes
        with_header(folder, json.dumps(header).encode(), body)

    return made


def header(text: bytes, length: int | None = None) -> Attack:
    return lambda folder: with_header(folder, text, b"", length)


def renamed(name: str) -> Attack:
    def made(folder: Path) -> None:
        header, body = header_of(folder)
        header[name] = header.pop("model.norm.weight")
        with_header(folder, json.dumps(header).encode(), body)

    return made


_ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

several(
    header_length_beyond_the_file=header(b"{}", 10**6),
    header_length_of_2_to_64=header(b"{}", 2**64 - 1),
    header_that_is_empty=header(b""),
    header_that_is_a_list=header(b"[]"),
    header_that_is_not_utf8=header(b'{"\xff": ' + _ENTRY + b"}"),
    header_with_half_a_character=header(b'{"\\ud800": ' + _ENTRY + b"}"),
    header_that_is_nested_deep=header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    header_that_is_nested_a_little_deep=header(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"),
    header_of_millions_of_lists=header(b'{"a":[' + b"[]," * 2_200_000 + b"[]]}"),
    header_of_millions_of_keys=header(
        b"{" + b",".join(b'"%x":[]' % i for i in range(600_000)) + b"}"
    ),
    a_name_twice=header(b'{"a":' + _ENTRY + b',"a":' + _ENTRY + b"}"),
    a_dtype_twice=header(b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}'),
    offsets_that_overlap=entry(data_offsets=[8, 16]),
    offsets_that_are_out_of_range=entry(data_offsets=[0, 2**62]),
    offsets_that_are_negative=entry(data_offsets=[-8, 0]),
    offsets_that_are_no_numbers=entry(data_offsets=[float("nan"), 4]),
    offsets_that_are_fractions=entry(data_offsets=[0.0, 1024.0]),
    offsets_that_are_texts=entry(data_offsets=["0", "4"]),
    offsets_that_are_true=entry(data_offsets=[False, True]),
    offsets_that_are_three=entry(data_offsets=[0, 1, 2]),
    offsets_that_are_none=entry(data_offsets=None),
    offsets_the_wrong_way_round=entry(data_offsets=[1024, 0]),
    a_dtype_that_is_unknown=entry(dtype="F33"),
    a_dtype_that_is_long=entry(dtype="F" * 10**6),
    a_dtype_that_is_a_list=entry(dtype=["F32"]),
    a_shape_whose_product_overflows=entry(shape=[2**62, 2**62, 2**62]),
    a_shape_of_numbers_with_many_digits=header(
        b'{"a":{"dtype":"F32","shape":['
        + b",".join([b"9" * 4000] * 5000)
        + b'],"data_offsets":[0,4]}}'
    ),
    a_shape_of_a_million_axes=entry(shape=[1] * 10**6),
    a_shape_that_is_negative=entry(shape=[-1, -1]),
    a_shape_that_is_a_mapping=entry(shape={"0": 1}),
    a_shape_that_is_a_text=entry(shape="12"),
    a_name_with_a_line_in_it=renamed("model\n---\nlicense: evil\n# x"),
    a_name_with_a_nul=renamed("model\0weight"),
    a_name_that_steers_terminals=renamed("\x1b]0;evil\x07\x1b[2J"),
    a_name_of_a_megabyte=renamed("x" * 10**6),
    a_name_that_is_empty=renamed(""),
)


# -- the index ---------------------------------------------------------------------------------------


def index(shard: Any, name: str = "model.norm.weight") -> Attack:
    """An index that puts one tensor elsewhere."""

    def made(folder: Path) -> None:
        names = [name for name in header_of(folder)[0] if name != "__metadata__"]
        weight_map = dict.fromkeys(names, "model.safetensors") | {name: shard}
        write_json(folder / "a/model.safetensors.index.json", {"weight_map": weight_map})

    return made


def index_of(data: Any) -> Attack:
    return lambda folder: (write_json(folder / "a/model.safetensors.index.json", data), None)[1]


def linked(name: str, target: str) -> Attack:
    """A file that is a link out of the model's folder."""

    def made(folder: Path) -> None:
        secret = folder / "secret"
        secret.mkdir()
        if (folder / "a" / name).is_file():
            (secret / target).write_bytes((folder / "a" / name).read_bytes())
        else:
            (secret / target).write_text("{{ the key to everything }}")
        (folder / "a" / name).unlink(missing_ok=True)
        (folder / "a" / name).symlink_to(secret / target)

    return made


several(
    index_with_an_absolute_path=index("/etc/passwd"),
    index_with_a_path_upwards=index("../b/model.safetensors"),
    index_with_dots=index(".."),
    index_with_a_missing_shard=index("model-2.safetensors"),
    index_with_a_nul=index("model\0.safetensors"),
    index_with_a_long_name=index("x" * 10**6),
    index_with_a_number=index(5),
    index_with_none=index(None),
    index_that_names_itself=index("model.safetensors.index.json"),
    index_that_names_the_config=index("config.json"),
    index_with_a_tensor_that_is_not_there=index("model.safetensors", "absent"),
    index_without_a_map=index_of({"metadata": {}}),
    index_whose_map_is_a_list=index_of({"weight_map": [["a", "model.safetensors"]]}),
    index_that_is_empty=index_of({"weight_map": {}}),
    index_that_is_a_list=index_of([1, 2]),
    weights_that_are_a_link_elsewhere=linked("model.safetensors", "key.pem"),
    a_config_that_is_a_link_elsewhere=linked("config.json", "key.pem"),
    a_template_that_is_a_link_elsewhere=linked("chat_template.jinja", "id_rsa"),
    a_vocabulary_that_is_a_link_elsewhere=linked("vocab.txt", "passwd"),
    settings_that_are_a_link_elsewhere=linked("generation_config.json", "token"),
)


@attack("a header just over the limit")
def _limit(folder: Path) -> None:
    with_header(folder, b"{}", length=100_000_001)
    os.truncate(folder / "a/model.safetensors", 100_000_009)


@attack("a config that is too large")
def _large(folder: Path) -> None:
    os.truncate(folder / "a/config.json", 65 * 2**20)


@attack("a config that is a link to itself")
def _loop(folder: Path) -> None:
    (folder / "a/config.json").unlink()
    (folder / "a/config.json").symlink_to("config.json")
    (folder / "a/model.safetensors").unlink()


@attack("weights that are a folder")
def _folder(folder: Path) -> None:
    (folder / "a/model.safetensors").unlink()
    (folder / "a/model.safetensors").mkdir()


@attack("weights that are a pipe")
def _pipe(folder: Path) -> None:
    (folder / "a/model.safetensors").unlink()
    os.mkfifo(folder / "a/model.safetensors")


# -- recipes -----------------------------------------------------------------------------------------

HEAD = "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: %s}\n- model: b\n"
HEAD += "  parameters: {weight: 1}\n"


def recipe(text: str | bytes) -> Attack:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return lambda folder: ((folder / "recipe.yml").write_bytes(data), None)[1]


def weight(value: str) -> Attack:
    return recipe(HEAD % value)


def more(text: str) -> Attack:
    return recipe(HEAD % 1 + text)


_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
_MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
)
_SLICE = "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: %s\n"

several(
    recipe_of_aliases=more(_LAUGHS),
    recipe_of_merge_keys=more(_MERGES),
    recipe_that_holds_itself=more("parameters: &p {weight: *p}\n"),
    recipe_with_an_object=more("parameters: !!python/object/apply:os.system ['touch evil']\n"),
    recipe_with_a_module=more("parameters: !!python/module:os\n"),
    recipe_with_a_name=more("parameters: !!python/name:os.system\n"),
    recipe_with_a_tag_of_its_own=more("parameters: !evil {a: 1}\n"),
    recipe_that_is_nested_deep=more("parameters: " + "[" * 3000 + "]" * 3000),
    recipe_that_is_nested_a_little_deep=more("parameters: " + "{a: " * 100 + "1" + "}" * 100),
    recipe_with_a_megabyte=more("chat_template: " + "x" * 10**6),
    recipe_of_quotes=more('"' * 100_000),
    recipe_of_braces=more("parameters: " + "{" * 3000),
    recipe_of_questions=more("? " * 50_000),
    recipe_that_is_empty=recipe(""),
    recipe_that_is_binary=recipe(b"\xff\xfe\0\0"),
    recipe_with_half_a_character=recipe(HEAD % '"\\ud800"'),
    recipe_with_half_a_character_as_a_key=more('parameters: {"\\ud800": 1}\n'),
    recipe_with_a_key_twice=more("dtype: float32\ndtype: float16\n"),
    recipe_of_many_unknown_keys=more("".join(f"k{i}: 1\n" for i in range(5000))),
    recipe_of_a_long_unknown_key=recipe("x" * 200_000 + ": 1\n"),
    recipe_of_documents=recipe("---\nmerge_method: linear\n" * 1000),
    weight_that_is_not_a_number=weight(".nan"),
    weight_that_is_infinite=weight(".inf"),
    weight_that_is_too_large=weight("1e999"),
    weight_that_is_an_absurd_number=weight("9" * 5000),
    weight_that_is_an_absurd_number_in_hex=weight("0x" + "f" * 200_000),
    weight_that_is_an_absurd_number_in_base_60=weight("1" + ":1" * 20_000),
    weight_that_is_a_date=weight("2001-99-99"),
    weight_that_is_binary=weight("!!binary AAAA"),
    weight_that_is_none=weight("~"),
    weight_that_is_a_mapping=weight("{a: 1}"),
    weights_that_add_to_nothing=recipe(HEAD % -1),
    layers_beyond_all_models=recipe(_SLICE % "[0, 1000000000000]"),
    layers_that_are_negative=recipe(_SLICE % "[-1, 1]"),
    layers_that_are_infinite=recipe(_SLICE % "[0, .inf]"),
    layers_that_are_fractions=recipe(_SLICE % "[0, 0.5]"),
    layers_the_wrong_way_round=recipe(_SLICE % "[1, 0]"),
    layers_without_end=recipe(
        "merge_method: passthrough\nslices:\n- &s {sources: [{model: a, layer_range: [0, 2]}]}\n"
        + "- *s\n" * 3000
    ),
    a_model_that_is_a_number=recipe("merge_method: linear\nmodels: [{model: 5}]\n"),
    a_model_with_a_nul=recipe('merge_method: linear\nmodels: [{model: "a\\0"}]\n'),
    a_model_with_a_line=recipe('merge_method: linear\nmodels: [{model: "a\\n---\\nx: y"}]\n'),
    a_model_of_a_long_name=recipe(f"merge_method: linear\nmodels: [{{model: {'x' * 100_000}}}]\n"),
    a_model_in_dev=recipe("merge_method: linear\nmodels: [{model: /dev/zero}]\n"),
    a_method_of_a_long_name=recipe(f"merge_method: {'x' * 200_000}\nmodels: [{{model: a}}]\n"),
    padding_without_end=more("tokenizer: {pad_to_multiple_of: 1000000000000}\n"),
    a_token_without_end=more(
        "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: 99999999999999}}}}\n"
    ),
    a_seed_without_end=more("seed: 99999999999999999999999\n"),
    a_template_that_is_nested_deep=more("chat_template: '{{ " + "(" * 50_000 + " }}'\n"),
    a_template_with_an_unknown_filter=more(
        "chat_template: '{{ messages | evil_filter_of_mine }}'\n"
    ),
)


# -- sweeps ------------------------------------------------------------------------------------------


def sweep(expression: str, axes: str = "w: [0.5, 0.7]") -> Attack:
    return recipe(f"sweep: {{{axes}}}\n" + HEAD % json.dumps(expression))


several(
    sweep_that_multiplies_texts=sweep("{{ 'x' * 10 ** 10 ~ w }}"),
    sweep_with_a_tower_of_powers=sweep("{{ w + 10 ** 10 ** 10 ** 10 }}"),
    sweep_with_a_large_number=sweep("{{ w * " + "9" * 4000 + " }}"),
    sweep_with_an_infinite_number=sweep("{{ w * 1e999 }}"),
    sweep_with_an_infinite_whole_number=sweep("{{ (1e999 if w else 0)|int }}"),
    sweep_that_reaches_for_classes=sweep("{{ w.__class__.__mro__ }}"),
    sweep_that_reaches_for_globals=sweep("{{ cycler.__init__.__globals__.os.system('touch evil') }}"),
    sweep_that_calls=sweep("{{ range(10**9) }}"),
    sweep_that_loops=sweep("{% for x in range(10**9) %}{{ w }}{% endfor %}"),
    sweep_that_includes=sweep("{% include '/etc/passwd' %}{{ w }}"),
    sweep_that_grows_a_text=sweep("{{ w ~ 'aaaaaaaa'" + "|replace('a', 'aaaaaaaa')" * 20 + " }}"),
    sweep_that_is_nested_deep=sweep("{{ " + "(" * 1500 + "w" + ")" * 1500 + " }}"),
    sweep_of_many_signs=sweep("{{ " + "-" * 3000 + "w }}"),
    sweep_of_many_points=sweep("{{ w + v }}", "w: {from: 0, to: 1, step: 1e-9}, v: [1]"),
    sweep_of_many_lists=sweep("{{ a+b+c+d }}", ", ".join(f"{k}: [{', '.join('0123456789')}]" for k in "abcd")),
    sweep_that_never_ends=sweep("{{ w }}", "w: {from: 0, to: 1, step: 0}"),
    sweep_over_infinity=sweep("{{ w }}", "w: [.inf, .nan]"),
    sweep_of_a_large_recipe=recipe(
        "sweep: {w: {from: 1, to: 900, step: 1}}\n"
        + HEAD % '"{{ w }}"'
        + "parameters: {x: [" + ", ".join(["1"] * 3000) + "]}\n"
    ),
    sweep_named_upwards=recipe('name: "../../{{ w }}"\nsweep: {w: [0.5, 0.7]}\n' + HEAD % '"{{ w }}"'),
    sweep_named_absolutely=recipe('name: "/tmp/{{ w }}"\nsweep: {w: [0.5, 0.7]}\n' + HEAD % '"{{ w }}"'),
    sweep_named_with_a_line=recipe('name: "a\\n{{ w }}"\nsweep: {w: [0.5, 0.7]}\n' + HEAD % '"{{ w }}"'),
    sweep_named_with_a_nul=recipe('name: "a\\0{{ w }}"\nsweep: {w: [0.5, 0.7]}\n' + HEAD % '"{{ w }}"'),
    sweep_named_at_length=recipe(f'name: "{"n" * 300}{{{{ w }}}}"\nsweep: {{w: [0.5, 0.7]}}\n' + HEAD % '"{{ w }}"'),
)  # fmt: skip


# -- configs and tokenizers --------------------------------------------------------------------------


def config_with(**changes: Any) -> Attack:
    return lambda folder: (change_config(folder / "a", **changes), None)[1]


def text_of(name: str, text: bytes, union: bool = False) -> Attack:
    """Another text for a file of the first model."""

    def made(folder: Path) -> None:
        (folder / "a" / name).write_bytes(text)
        if union:
            with (folder / "recipe.yml").open("a") as recipe:
                recipe.write("tokenizer_source: union\n")

    return made


def tokenizer(name: str = "tokenizer.json", **changes: Any) -> Attack:
    """Changes of a tokenizer's file, which a union of vocabularies reads."""

    def made(folder: Path) -> None:
        data = json.loads((folder / "a" / name).read_text())
        for key, value in changes.items():
            *path, last = key.split("__")
            inner = data
            for part in path:
                inner = inner[part]
            inner[last] = value
        text_of(name, json.dumps(data).encode(), union=True)(folder)

    return made


several(
    config_that_is_nested_deep=text_of("config.json", b'{"text_config":' * 40_000 + b"1" + b"}" * 40_000),
    config_that_is_nested_a_little_deep=text_of("config.json", b'{"a_config":' * 300 + b"{}" + b"}" * 300),
    config_of_millions_of_lists=text_of("config.json", b'{"a":[' + b"[]," * 2_200_000 + b"[]]}"),
    config_that_is_a_list=text_of("config.json", b"[]"),
    config_that_is_not_utf8=text_of("config.json", b'{"model_type": "\xff"}'),
    config_with_half_a_character=text_of("config.json", b'{"model_type": "\\ud800"}'),
    config_with_many_digits=text_of("config.json", b'{"vocab_size": ' + b"9" * 4000 + b"}"),
    config_whose_classes_are_a_number=config_with(architectures=5),
    config_whose_classes_are_numbers=config_with(architectures=[5]),
    config_whose_type_is_a_list=config_with(model_type=["qwen2"]),
    tokenizer_without_a_model=tokenizer(model=None),
    tokenizer_whose_ids_are_texts=tokenizer(model__vocab={"a": "0", "b": "1"}),
    tokenizer_whose_ids_are_negative=tokenizer(model__vocab={"a": -5, "b": 0}),
    tokenizer_whose_ids_are_huge=tokenizer(model__vocab={"a": 0, "b": 10**9}),
    tokenizer_whose_ids_are_fractions=tokenizer(model__vocab={"a": 0.0, "b": 1.0}),
    tokenizer_whose_pieces_are_numbers=tokenizer(model__vocab=[[1, 0.5], [2, 0.5]]),
    tokenizer_whose_pieces_are_empty=tokenizer(model__vocab=[[], []]),
    tokenizer_that_adds_a_number=tokenizer(added_tokens=[5]),
    tokenizer_that_adds_a_mapping=tokenizer(added_tokens={"content": "x"}),
    tokenizer_that_is_nested_deep=text_of("tokenizer.json", b'{"model":' * 40_000, union=True),
    settings_whose_tokens_are_a_list=tokenizer("tokenizer_config.json", added_tokens_decoder=[1]),
    settings_whose_ids_are_names=tokenizer("tokenizer_config.json", added_tokens_decoder={"x": {"content": "a"}}),
    settings_whose_tokens_are_numbers=tokenizer("tokenizer_config.json", added_tokens_decoder={"40": 5}),
    settings_whose_ids_are_huge=tokenizer("tokenizer_config.json", added_tokens_decoder={"9" * 30: {}}),
    added_tokens_whose_ids_are_texts=text_of("added_tokens.json", b'{"a": "b"}', union=True),
    added_tokens_whose_ids_are_lists=text_of("added_tokens.json", b'{"a": [1]}', union=True),
)  # fmt: skip


@attack("a template that is not a text")
def _template(folder: Path) -> None:
    (folder / "a/chat_template.jinja").write_bytes(b"\xff\xfe\0" * 100)
    with (folder / "recipe.yml").open("a") as recipe:
        recipe.write("chat_template: auto\n")


# -- pickles -----------------------------------------------------------------------------------------


def archive(data: bytes, entries: int = 0, compressed: bool = False) -> bytes:
    """A file of PyTorch's with this pickle."""
    buffer = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", how) as made:
        made.writestr("m/data.pkl", data)
        made.writestr("m/data/0", b"\0" * 16)
        made.writestr("m/version", b"3\n")
        for number in range(entries):
            made.writestr(f"m/{number:x}", b"")
    return buffer.getvalue()


def pickled(data: bytes, **how: Any) -> Attack:
    def made(folder: Path) -> None:
        (folder / "a/model.safetensors").unlink()
        (folder / "a/pytorch_model.bin").write_bytes(archive(data, **how))

    return made


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


_STORAGE = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x04tQ"
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + _STORAGE + b"K\x00K\x04\x85K\x01\x85\x89NtR"
_STATE = b"\x80\x02}\x8c\x01a"
_DOUBLED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60

several(
    pickle_that_runs=pickled(pickle.dumps({"a": Evil()}, 2)),
    pickle_that_runs_beside_tensors=pickled(_STATE + _TENSOR + b"s\x8c\x01bcos\nsystem\n\x8c\ntouch evil\x85Rs."),
    pickle_that_evaluates=pickled(b"c__builtin__\neval\n\x8c\x031+1\x85R."),
    pickle_that_instantiates=pickled(b"(ios\nsystem\n."),
    pickle_with_a_memo_of_gigabytes=pickled(_STATE + b"Nr\xff\xff\xff\x7fs."),
    pickle_with_a_memo_of_its_own=pickled(_STATE + b"Np99999999999\ns."),
    pickle_with_a_buffer_of_gigabytes=pickled(b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x."),
    pickle_with_a_key_that_is_never_hashed=pickled(b"\x80\x02}" + _DOUBLED + b"Ns."),
    pickle_with_a_key_that_is_deep=pickled(b"\x80\x02})" + b"\x85" * 500_000 + b"Ns."),
    pickle_with_a_set_that_is_deep=pickled(b"\x80\x04\x8f()" + b"\x85" * 500_000 + b"\x90."),
    pickle_that_is_deep=pickled(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    pickle_with_a_size_that_is_deep=pickled(_STATE + _TENSOR.replace(b"K\x04\x85", _DOUBLED) + b"s."),
    pickle_of_millions_of_lists=pickled(b"\x80\x02(" + b"]" * 5_000_000 + b"l."),
    pickle_that_copies=pickled(
        b"\x80\x02("
        + b"K\x01" * 100_000
        + b"tq\x00ccollections\nOrderedDict\nq\x01"
        + b"h\x01h\x00\x85R0" * 20_000
        + b"."
    ),
    pickle_that_changes_a_dtype=pickled(b"\x80\x02ctorch\nfloat32\n]\x8c\x04evilab."),
    pickle_that_changes_a_storage=pickled(
        _STATE + _TENSOR.replace(_STORAGE, _STORAGE + b"(\x8c\x0b/etc/passwdK\x00K\x10ctorch\nfloat32\nlb") + b"s."
    ),
    pickle_that_changes_a_tensor=pickled(
        _STATE + _TENSOR + b"(\x8c\x0b/etc/passwdK\x00ctorch\nfloat32\n)K\x04\x85K\x01\x85lbs."
    ),
    pickle_that_ends_early=pickled(_STATE),
    pickle_that_is_empty=pickled(b""),
    pickle_that_is_compressed=pickled(b"\x80\x02" + b"]0" * 1_000_000 + b"N.", compressed=True),
    pickle_among_many_entries=pickled(_STATE + _TENSOR + b"s.", entries=350_000),
)  # fmt: skip


def metadata(data: bytes) -> Attack:
    def made(folder: Path) -> None:
        (folder / "a/model.safetensors").unlink()
        (folder / "a/.metadata").write_bytes(data)
        (folder / "a/__0_0.distcp").write_bytes(archive(b"N."))

    return made


several(
    metadata_that_runs=metadata(pickle.dumps(Evil(), 2)),
    metadata_with_a_memo_of_gigabytes=metadata(b"\x80\x02Nr\xff\xff\xff\x7f."),
    metadata_that_is_a_list=metadata(b"\x80\x02]."),
    metadata_that_is_empty=metadata(b""),
)


@attack("chunks that lie on top of each other")
def _chunks(folder: Path) -> None:
    import warnings

    from torch.distributed import checkpoint

    (folder / "a/model.safetensors").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = {f"t{i}": torch.ones(4) for i in range(3)}
        checkpoint.save(tensors, checkpoint_id=folder / "a/step", no_dist=True)
    for file in (folder / "a/step").iterdir():
        file.rename(folder / "a" / file.name)
    stored = pickle.loads((folder / "a/.metadata").read_bytes())
    for place in stored.storage_data.values():
        place.offset = 0
    (folder / "a/.metadata").write_bytes(pickle.dumps(stored, 2))


@attack("chunks that lie elsewhere")
def _elsewhere(folder: Path) -> None:
    _chunks(folder)
    stored = pickle.loads((folder / "a/.metadata").read_bytes())
    for place in stored.storage_data.values():
        place.relative_path = "../b/model.safetensors"
    (folder / "a/.metadata").write_bytes(pickle.dumps(stored, 2))


@attack("a run whose last step lies elsewhere")
def _tracker(folder: Path) -> None:
    (folder / "a/model.safetensors").unlink()
    (folder / "a/latest").write_text("../b")


@attack("a run whose last step has a long name")
def _long_tracker(folder: Path) -> None:
    (folder / "a/model.safetensors").unlink()
    (folder / "a/latest").write_text("𝕏" * 200)


# -- GGUF --------------------------------------------------------------------------------------------


def gguf(data: bytes) -> Attack:
    def made(folder: Path) -> None:
        (folder / "a/model.safetensors").unlink()
        (folder / "a/model.gguf").write_bytes(data)

    return made


def _gguf(tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _array(kind: int, count: int, rest: bytes = b"") -> bytes:
    return _text(b"k") + struct.pack("<IIQ", 9, kind, count) + rest


several(
    gguf_that_claims_many_tensors=gguf(_gguf(2**63, 0)),
    gguf_that_claims_many_keys=gguf(_gguf(0, 2**62)),
    gguf_that_claims_a_long_text=gguf(_gguf(0, 1, struct.pack("<Q", 2**62))),
    gguf_that_claims_many_texts=gguf(_gguf(0, 1, _array(8, 2**61))),
    gguf_that_claims_many_numbers=gguf(_gguf(0, 1, _array(12, 2**61))),
    gguf_of_arrays_in_arrays=gguf(_gguf(0, 1, _array(9, 1) * 1000)),
    gguf_of_millions_of_texts=gguf(_gguf(0, 1, _array(8, 3_000_000, bytes(24_000_000)))),
    gguf_of_millions_of_keys=gguf(_gguf(0, 3_000_000, bytes(1000))),
    gguf_with_an_unknown_type=gguf(_gguf(0, 1, _text(b"k") + struct.pack("<I", 99))),
    gguf_with_a_tensor_of_many_axes=gguf(_gguf(1, 0, _text(b"t") + struct.pack("<I", 2**31))),
    gguf_with_a_tensor_that_overflows=gguf(
        _gguf(1, 0, _text(b"t") + struct.pack("<IQQQQIQ", 4, *[2**63] * 4, 0, 2**63))
    ),
    gguf_that_is_cut_off=gguf(b"GGUF\3\0\0\0"),
    gguf_that_is_empty=gguf(b""),
)


# -- adapters ----------------------------------------------------------------------------------------


def adapter(tensors: dict[str, torch.Tensor] | None = None, **settings: Any) -> Attack:
    """A recipe whose first model has an adapter."""

    def made(folder: Path) -> None:
        from safetensors.torch import save_file

        stem = "base_model.model.model.layers.0.self_attn.q_proj"
        given = tensors or {
            f"{stem}.lora_A.weight": torch.ones(2, 8),
            f"{stem}.lora_B.weight": torch.ones(8, 2),
        }
        (folder / "lora").mkdir()
        save_file(given, folder / "lora/adapter_model.safetensors")
        write_json(folder / "lora/adapter_config.json", {"r": 2, "lora_alpha": 4} | settings)
        text = (folder / "recipe.yml").read_text().replace("model: a\n", "model: a+lora\n")
        assert "a+lora" in text
        (folder / "recipe.yml").write_text(text)

    return made


_LONG = f"base_model.model.model.layers.0.{'a' * 200}.lora_A.weight"

several(
    adapter_whose_rank_is_huge=adapter(r=10**12),
    adapter_whose_rank_is_negative=adapter(r=-1),
    adapter_whose_rank_is_a_fraction=adapter(r=1.5),
    adapter_whose_rank_is_a_text=adapter(r="2"),
    adapter_whose_alpha_is_not_a_number=adapter(lora_alpha=float("nan")),
    adapter_whose_alpha_is_infinite=adapter(lora_alpha=float("inf")),
    adapter_whose_alpha_is_a_list=adapter(lora_alpha=[1]),
    adapter_with_a_catastrophic_pattern=adapter(rank_pattern={"(.*)*(.*)*(.*)*x": 2}),
    adapter_with_nested_repeats=adapter(rank_pattern={"(([a-z._0-9])+)+x": 2}),
    adapter_with_many_alternatives=adapter(rank_pattern={"(.|.)" * 30 + "x": 2}),
    adapter_with_many_wildcards=adapter(rank_pattern={".*" * 30 + "x": 2}),
    adapter_with_a_lookbehind=adapter(rank_pattern={"(?<=a+)b": 2}),
    adapter_with_a_backreference=adapter(alpha_pattern={r"(a*)\1x": 2}),
    adapter_with_a_long_pattern=adapter(rank_pattern={"a?" * 100_000: 2}),
    adapter_with_a_broken_pattern=adapter(rank_pattern={"(": 2}),
    adapter_whose_patterns_are_a_list=adapter(rank_pattern=["q_proj"]),
    adapter_whose_rank_in_a_pattern_is_a_text=adapter(rank_pattern={"q_proj": "2"}),
    adapter_for_no_tensor=adapter({_LONG: torch.ones(2, 8)}),
    adapter_of_another_shape=adapter({"base_model.model.model.norm.weight": torch.ones(3)}),
    adapter_of_another_kind=adapter(peft_type="evil\n---\n" * 100),
)


def settings(**changes: Any) -> Attack:
    """The tokenizer's settings with other entries, and a recipe that asks for the models' template."""

    def made(folder: Path) -> None:
        for name in "ab":
            file = folder / name / "tokenizer_config.json"
            write_json(file, json.loads(file.read_text()) | changes)
        with (folder / "recipe.yml").open("a") as recipe:
            recipe.write("chat_template: auto\n")

    return made


# -- what comes to nothing ---------------------------------------------------------------------------

HARMLESS: dict[str, Attack] = {
    "a name that leads elsewhere": renamed("../../../../etc/passwd"),
    "a name of many numbers": renamed("model.layers." + "0." * 200 + "weight"),
    "a name like markup": renamed("</td><script>alert(1)</script>|`**[x](y)"),
    "layers without number": config_with(num_hidden_layers=10**9),
    "templates whose names are no names": settings(
        chat_template=[{"name": ["default"], "template": "x"}, {"name": {}}, {"template": []}, 5]
    ),
    "a template that would never be done": more(
        "chat_template: \"{{ 'x' * 10 ** 10 }} and {{ 10 ** 10 ** 10 }}\"\n"
    ),
}
"""Attacks that come to nothing: the merge is made, and nothing else."""
