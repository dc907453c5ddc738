"""Valid files with faults: what tests/fuzz_readers.py, tests/soak.py and the tests of the page feed to the readers."""
import io
import json
import zipfile
import zlib

ODD = ["", "0", "-1", "1e999", "nan", "inf", "-0.0", "5.0001", "99999999999999999999999", "1" * 5000, "١٢", "1_0", "0x1f", "true", "null",
       "\x00", "\ufeff", "\r", "\n", '"', "'", ",", ";", "\t", "#", "..", "/", "\\", "[", "{", "]", "}", "é", "\U0001f600", "AU12", "AU99", "frame",
       "𝟜", "1e5", "%s", "a" * 300]     # a few of them are numbers in other scripts, which Python reads as such
ODD_VALUES = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, -1.5, float("nan"), float("inf"), "", "x", "\u0000", "a" * 1000, [], {}, [[]],
              [1, 2, 3], {"a": 1}, "../../etc", "aueditnet.editor.AUEditNet"]


def mutated(data, rng):
    """A file with a few bytes changed, removed, repeated, or its end cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        at, n = rng.randrange(len(data)), min(len(data), rng.choice((1, 2, 4, 64, 1000)))
        if rng.random() < 0.3:
            at = rng.randrange(min(len(data), 600))      # headers are at the beginning
        how = rng.randrange(6)
        if how == 0:
            data[at:at + n] = rng.randbytes(n)
        elif how == 1:
            del data[at:at + n]
        elif how == 2:
            data[at:at] = data[at:at + n] * rng.choice((1, 3))
        elif how == 3:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 4:
            data[at:at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        else:
            del data[at:]
    return bytes(data)


def mutated_text(text, rng):
    """A text of lines and cells with a few of them replaced, exchanged, doubled or removed."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        at, how = rng.randrange(len(lines)), rng.randrange(6)
        cells = lines[at].split(",")
        cell = rng.randrange(len(cells))
        if how <= 1:
            cells[cell] = rng.choice(ODD)
        elif how == 2:
            cells.insert(cell, rng.choice(ODD))
        elif how == 3:
            del cells[cell]
        elif how == 4:
            lines.insert(rng.randrange(len(lines)), lines[at])
        lines[at] = ",".join(cells)
        if how == 5:
            del lines[at]
        text = "\n".join(lines)
    data = text.encode(rng.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin-1"]), "replace")
    return mutated(data, rng) if rng.random() < 0.2 else data


def mutated_json(value, rng):
    """A tree of JSON with a few places replaced, removed or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key, place = None, None, value
        while isinstance(place, (dict, list)) and place and rng.random() < 0.85:
            holder, key = place, rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            place = holder[key]
        if holder is None:
            return rng.choice(ODD_VALUES)
        how = rng.randrange(5)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "4", "size"])] = holder.pop(key)
        elif how == 2 and isinstance(place, int) and not isinstance(place, bool):
            holder[key] = place * rng.choice((-1, 2, 3, 1000, 10**6, 10**9))
        else:
            holder[key] = rng.choice(ODD_VALUES)
    return value


def mutated_safetensors(data, rng):
    """A file of safetensors: its header as a tree, or its bytes."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    n = int.from_bytes(data[:8], "little")
    head = json.dumps(mutated_json(json.loads(data[8:8 + n]), rng)).encode()
    if rng.random() < 0.2:
        head = mutated(head, rng)
    return len(head).to_bytes(8, "little") + head + data[8 + n:]


def mutated_zip(data, rng):
    """A zip file (PyTorch's format): one of its files mutated, with a right checksum; or its bytes."""
    if rng.random() < 0.3 or not zipfile.is_zipfile(io.BytesIO(data)):
        return mutated(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = rng.choice([name for name in old.namelist() if name.endswith(".pkl")] * 3 + old.namelist())
        for name in old.namelist():
            content = old.read(name)
            if name == chosen and rng.random() < 0.1:
                continue
            new.writestr(name, mutated(content, rng) if name == chosen else content)
    return out.getvalue()


def mutated_png(data, rng):
    """A PNG file: one of its chunks mutated, with a right checksum."""
    out, at, chunks = data[:8], 8, []
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at:at + 4], "big")
        chunks.append((data[at + 4:at + 8], data[at + 8:end - 4]))
        at = end
    chosen = rng.randrange(len(chunks))
    for k, (kind, content) in enumerate(chunks):
        if k == chosen:
            content = mutated(content, rng)
        for _ in range(2 if k == chosen and rng.random() < 0.1 else 1):
            out += len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    return out


def picture(image, form, **how):
    """A PIL picture as a file."""
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def bomb(side):
    """The head of a PNG file that promises side x side pixels."""
    from PIL import Image
    data = bytearray(picture(Image.new("RGB", (64, 64)), "PNG"))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)
