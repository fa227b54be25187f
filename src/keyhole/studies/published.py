"""Published CIFAR-100 results, to stand beside one's own, each with the protocol under which it was reported.

All are top-1 on the test images after 240 epochs with batch 64, the learning rate 0.05 falling at 150, 180 and 210, in
the protocol of https://github.com/HobbitLong/RepDistiller, and with teachers that were shared. They are not comparable
with shorter schedules; what differs from that protocol is told.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
        method: How the student was trained.
        top1: Percent.
        protocol: ``last`` epoch, or ``best`` test epoch, where the code says which; more where it differs.
        source: Where it stands.
    """

    method: str
    top1: float
    protocol: str
    source: str


_CRD = "https://github.com/HobbitLong/RepDistiller"
_TTM = "https://github.com/zkxufo/TTM"
_LS = "https://github.com/sunshangquan/logit-standardization-KD"
_UNTOLD = "not told; the code keeps the last epoch and logs the best"

# teacher and student -> methods; of resnet110 -> resnet20 the sources give no DKD of the authors
PUBLISHED: dict[tuple[str, str], tuple[Published, ...]] = {
    ("resnet56", "resnet20"): (
        Published("teacher", 72.34, "last", _CRD),
        Published("student alone", 69.06, "last", _CRD),
        Published("KD", 70.66, "last", _CRD),
        Published("FitNet", 69.21, "last", _CRD),
        Published("AT", 70.55, "last", _CRD),
        Published("SP", 69.67, "last", _CRD),
        Published("VID", 70.38, "last", _CRD),
        Published("CRD", 71.16, "last", _CRD),
        Published("DIST", 71.75, _UNTOLD, _TTM),
        Published("DKD", 71.97, "best", _LS),
        Published("KD + standardized logits", 71.43, "best", _LS),
        Published("WTTM", 71.92, _UNTOLD, _TTM),
        Published("WTTM + CRD", 72.20, _UNTOLD, _TTM),
    ),
    ("resnet110", "resnet20"): (
        Published("teacher", 74.31, "last", _CRD),
        Published("student alone", 69.06, "last", _CRD),
        Published("KD", 70.67, "last", _CRD),
        Published("FitNet", 68.99, "last", _CRD),
        Published("AT", 70.22, "last", _CRD),
        Published("SP", 70.04, "last", _CRD),
        Published("VID", 70.16, "last", _CRD),
        Published("CRD", 71.46, "last", _CRD),
        Published("DIST", 71.65, _UNTOLD, _TTM),
        Published("KD + standardized logits", 71.48, "best", _LS),
        Published("WTTM", 71.67, _UNTOLD, _TTM),
        Published("WTTM + CRD", 72.13, _UNTOLD, _TTM),
        Published("WTTM + ITRD", 72.20, _UNTOLD, _TTM),
    ),
    ("resnet110", "resnet32"): (
        Published("teacher", 74.31, "last", _CRD),
        Published("student alone", 71.14, "last", _CRD),
        Published("KD", 73.08, "last", _CRD),
        Published("FitNet", 71.06, "last", _CRD),
        Published("AT", 72.31, "last", _CRD),
        Published("SP", 72.69, "last", _CRD),
        Published("VID", 72.61, "last", _CRD),
        Published("CRD", 73.48, "last", _CRD),
        Published("DIST", 73.69, _UNTOLD, _TTM),
        Published("DKD", 74.11, "best", _LS),
        Published("KD + standardized logits", 74.17, "best", _LS),
        Published("WTTM", 74.13, _UNTOLD, _TTM),
        Published("WTTM + CRD", 74.52, _UNTOLD, _TTM),
    ),
}
