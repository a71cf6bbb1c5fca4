"""Turn what a quantised file holds for one matrix into one layer, whatever program wrote the file."""

from torch import Tensor

from talkinghead_lab.weights.formats.containers import Stored, WeightFile
from talkinghead_lab.weights.formats.quanto import from_quanto
from talkinghead_lab.weights.formats.scaled import from_scales
from talkinghead_lab.weights.formats.unsupported import check_names, check_plain


def combined(file: WeightFile) -> dict[str, Stored]:
    """The tensors of a file with each quantised matrix as one entry, under the name of its weight.

    Apart from small tensors, no weight is read. Plain tensors keep their type; fp8 tensors that are no
    matrices become bf16, which holds their values exactly.

    Raises:
        CheckpointError: a scale is missing or cannot be right, or the file is quantised in a way that is not
            supported; the error names the tensor and the way.
    """
    tensors = from_quanto(file)
    check_names(tensors, file.path)
    tensors = from_scales(tensors, file.metadata, file.path)
    for name, stored in tensors.items():
        if isinstance(stored, Tensor):
            check_plain(name, stored, file.path)
    return tensors
