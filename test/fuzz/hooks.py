"""Gives the fuzzer the ids of what prepare.py made, so that it reaches more than 404s."""

import json
import os
import zlib

import schemathesis

with open(os.environ["FUZZ_KNOWN"], encoding="utf-8") as f:
    PREPARED = json.load(f)
KNOWN = PREPARED["known"]
KEYED = set()  # (method, path) of what takes an idempotency key


def widen(name, schema, known=KNOWN):
    """What the document allows stays allowed; what is there becomes likelier. An example would be nobody's."""
    if name in known and schema.get("type") == "string":
        allowed = {key: schema.pop(key) for key in ("type", "format", "pattern", "maxLength", "minLength") if key in schema}
        schema["anyOf"] = [{"type": "string", "enum": known[name]}, allowed]
        schema.pop("example", None)


def name_known(value, known):
    """An example names what is there."""
    if isinstance(value, dict):
        return {key: known[key][0] if key in known and isinstance(member, str) else name_known(member, known) for key, member in value.items()}
    if isinstance(value, list):
        return [name_known(member, known) for member in value]
    return value


def known_at(path):
    return {**KNOWN, **PREPARED["bodies"].get(path, {})}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for path, item in raw_schema["paths"].items():
        for method, operation in item.items():
            # What is suspended or closed takes part in nothing more.
            known = {**KNOWN, "accountId": PREPARED["spare"]} if method == "patch" else KNOWN
            if {"$ref": "#/components/parameters/IdempotencyKey"} in operation.get("parameters", []):
                KEYED.add((method.upper(), path))
            for parameter in operation.get("parameters", []):
                if "schema" in parameter:
                    widen(parameter["name"], parameter["schema"], known)
            for media in operation.get("requestBody", {}).get("content", {}).values():
                media["example"] = name_known(media["example"], known_at(path))
    for name, schema in raw_schema["components"]["schemas"].items():
        if name.endswith(("Request", "Body")) or name == "BatchItem":
            for field, of in schema.get("properties", {}).items():
                widen(field, of)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Three of four requests that the document allows name in their body what goes together, under a key of their own.

    Which ones depends on the rest of the body, so that a seed repeats.
    """
    if case.meta is None or case.meta.generation.mode.is_negative or not isinstance(case.body, dict):
        return
    names = known_at(case.path)
    rest = {field: value for field, value in case.body.items() if field not in names}
    dice = zlib.crc32(json.dumps(rest, sort_keys=True).encode())
    if dice % 4 == 0:
        return
    for field in case.body:
        if field in names and isinstance(case.body[field], str):
            case.body[field] = names[field][dice // 4 % len(names[field])]
    if (case.method.upper(), case.path) in KEYED:
        case.headers.pop("Idempotency-Key", None)
        case.body["idempotencyKey"] = f"fuzz-{case.id}"
