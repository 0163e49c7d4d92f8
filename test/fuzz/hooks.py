"""Gives the fuzzer the ids of what prepare.py made, so that it reaches more than 404s."""

import json
import os
import zlib

import schemathesis

with open(os.environ["FUZZ_KNOWN"], encoding="utf-8") as f:
    PREPARED = json.load(f)
KNOWN = PREPARED["known"]


def widen(name, schema):
    """What the document allows stays allowed; what is there becomes likelier. An example would be nobody's."""
    if name in KNOWN and schema.get("type") == "string":
        allowed = {key: schema.pop(key) for key in ("type", "format", "pattern", "maxLength", "minLength") if key in schema}
        schema["anyOf"] = [{"type": "string", "enum": KNOWN[name]}, allowed]
        schema.pop("example", None)


def name_known(value):
    """An example names what is there."""
    if isinstance(value, dict):
        return {key: KNOWN[key][0] if key in KNOWN and isinstance(member, str) else name_known(member) for key, member in value.items()}
    if isinstance(value, list):
        return [name_known(member) for member in value]
    return value


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for item in raw_schema["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                if "schema" in parameter:
                    widen(parameter["name"], parameter["schema"])
            for media in operation.get("requestBody", {}).get("content", {}).values():
                media["example"] = name_known(media["example"])
    for name, schema in raw_schema["components"]["schemas"].items():
        if name.endswith(("Request", "Body")) or name == "BatchItem":
            for field, of in schema.get("properties", {}).items():
                widen(field, of)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Three of four requests that the document allows name in their body what goes together; by the rest of it, so that a seed repeats."""
    if case.meta is None or case.meta.generation.mode.is_negative or not isinstance(case.body, dict):
        return
    names = {**KNOWN, **PREPARED["bodies"].get(case.path, {})}
    rest = {field: value for field, value in case.body.items() if field not in names}
    dice = zlib.crc32(json.dumps(rest, sort_keys=True).encode())
    if dice % 4 == 0:
        return
    for field in case.body:
        if field in names and isinstance(case.body[field], str):
            case.body[field] = names[field][dice // 4 % len(names[field])]
