"""Annotations that are not used are counted by reason, with the first examples.

`check`, `build`, `evaluate` and the start of training report them alike, by `Findings.lines`.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

NAMED = 5
"""Examples that are named for each reason."""

NO_OUTLINE = "no usable outline"
NO_PIXEL = "outline without a pixel in the image"
NO_AREA = "box without area in the image"
FRACTIONS = "coordinates between 0 and 1"
PIXELS = "coordinates beyond the image"
UNKNOWN_IMAGE = "image_id of no image in the file"
NO_IMAGE_ID = "no id"
NO_RECORD = "no annotation record for it"
EMPTY_SEGMENT = "no pixel of this segment in the PNG"
UNLISTED_SEGMENT = "an id in the PNG that no segment lists"
OTHER_CLASS = "class outside the dataset's list"
LOW_QUALITY = "below the quality that was asked for"
NO_IMAGE_FILE = "no JPEG or PNG of the same name next to it"
NO_SPLIT = "it belongs to no split"
NO_AREA_SHAPE = "shape without area"
LOST_WHOLE = "part whose whole is not known"
DOUBLED_ID = "annotation id that appears twice in its image"
DOUBLED_FILE = "several for one file"
REPEATED = "the same class and outline as another one in its image"
DARK = "of 16 bits with all values below 8192"

_SUBJECTS = {
    NO_IMAGE_ID: "image record",
    NO_RECORD: "image record",
    DOUBLED_FILE: "image record",
    NO_IMAGE_FILE: "annotation file",
    NO_SPLIT: "annotation file",
    DARK: "image",
}
_USED = (LOST_WHOLE, DOUBLED_ID, DOUBLED_FILE, REPEATED, DARK)
_ADVICE = {
    FRACTIONS: "fractions of the image; expected pixels: multiply x by its width and y by its "
    "height",
    PIXELS: "pixels; expected fractions of the image: divide x by its width and y by its height",
    NO_OUTLINE: "the reader's option boxes_only trains on boxes instead, "
    "--config.data.custom_boxes_only=True in a run",
    DOUBLED_FILE: "each is an example without the annotations of the others, and one of them may "
    "be held out while another is trained on; give each file one record",
    NO_SPLIT: "name it after a split, or add its images to the file of one",
    REPEATED: "such objects are learned to be detected twice; delete one of the two",
    DARK: "almost black, since the high byte is read; rescale to 8 bits or the full 16-bit range",
}


@dataclasses.dataclass(frozen=True)
class Unused:
    """Annotations that did not become instances for one reason.

    Attributes:
        reason: one of the texts above.
        named: the first of them.
        count: number of annotations.
    """

    reason: str
    named: tuple[str, ...]
    count: int = 1


class Findings:
    """Counts of used and unused annotations over many images.

    Attributes:
        unused: reason -> annotations that were not used.
        named: reason -> the first of them.
        classes: class text -> [instances, crowd regions].
    """

    def __init__(self):
        self.unused: collections.Counter[str] = collections.Counter()
        self.named: dict[str, list[str]] = {}
        self.classes: dict[str, list[int]] = {}

    def add(self, found: Iterable[Unused]) -> None:
        """Counts what was not used."""
        for item in found:
            self.unused[item.reason] += item.count
            known = self.named.setdefault(item.reason, [])
            known.extend(item.named[: max(0, NAMED - len(known))])

    def add_class(self, text: str, instances: int = 0, crowds: int = 0) -> None:
        """Counts instances and crowd regions of a class."""
        counts = self.classes.setdefault(text, [0, 0])
        counts[0] += instances
        counts[1] += crowds

    def merge(self, other: Mapping) -> None:
        """Adds the result of `to_dict`."""
        for reason, count in other.get("unused", {}).items():
            self.add([Unused(reason, tuple(other["unused_named"].get(reason, ())), count)])
        for text, counts in other.get("classes", {}).items():
            self.add_class(text, *counts)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "unused": dict(self.unused),
            "unused_named": self.named,
            "classes": {text: list(counts) for text, counts in self.classes.items()},
        }

    def lines(self) -> list[str]:
        """One sentence per finding; empty if everything is used."""
        said = []
        for reason, count in self.unused.most_common():
            subject = _SUBJECTS.get(reason, "annotation") + ("s" if count > 1 else "")
            use = "used all the same" if reason in _USED else "not used"
            named = self.named.get(reason, [])
            more = "; ..." if count > len(named) else ""
            advice = f" ({_ADVICE[reason]})" if reason in _ADVICE else ""
            said.append(f"{count} {subject} {use}, {reason}{advice}: {'; '.join(named)}{more}")
        crowds = sum(counts[1] for counts in self.classes.values())
        if crowds:
            noun = "crowd region (iscrowd 1) is" if crowds == 1 else "crowd regions (iscrowd 1) are"
            said.append(f"{crowds} {noun} ignored in training")
        for text, (instances, regions) in self.classes.items():
            if regions and not instances:
                noun = "the one annotation" if regions == 1 else f"all {regions} annotations"
                verb = "is a crowd region" if regions == 1 else "are crowd regions"
                said.append(
                    f"{noun} of {text} {verb} (iscrowd 1), so the class is never trained on; where "
                    "each outlines one object, set iscrowd to 0"
                )
        return said
