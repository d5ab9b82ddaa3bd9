"""GGUF copies of a model in other number formats, for peers that read GGUF."""

from pathlib import Path

import gguf

__all__ = ["converted"]

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def converted(source: Path, target: Path, kind: str) -> Path:
    """A copy of a GGUF model whose matrices are of one kind; metadata unchanged.

    Vectors (norms) stay in float32, as llama.cpp's own converter leaves them.

    Args:
        source: The model.
        target: Where the copy goes.
        kind: "F32", "BF16" or "Q8_0".
    """
    wanted = gguf.GGMLQuantizationType[kind]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sort = field.types[0]
        item = field.types[-1] if sort == gguf.GGUFValueType.ARRAY else None
        is_type = field.name == "general.file_type"
        value = int(_FILE_TYPES[kind]) if is_type else field.contents()
        writer.add_key_value(field.name, value, sort, sub_type=item)
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if numbers.ndim > 1 and kind != "F32":
            packed = gguf.quants.quantize(numbers, wanted)
            writer.add_tensor(tensor.name, packed, raw_dtype=wanted)
        else:
            writer.add_tensor(tensor.name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
