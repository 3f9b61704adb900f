"""BLEU, ROUGE-L, CIDEr and METEOR of captions, as the papers compute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from videolm.metrics.meteor import METEOR_VERSION, Meteor
from videolm.metrics.ptb import PTB_VERSION, tokenize


@dataclass(frozen=True)
class VideoCaptionScores:
    """One hypothesis with its references, on the scales of `CaptionScores`."""

    bleu_4: float
    """Nearly 0 where no four words in a row are right: BLEU is meant for a set."""
    rouge_l: float
    cider: float
    """By the frequencies of the whole set, whose CIDEr is the mean of these."""
    meteor: float | None


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions, and what has to be known to compare them."""

    bleu_1: float
    """BLEU in [0, 1], from counts over the whole set, against the reference nearest in length."""
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    """In [0, 1], beta 1.2, mean over videos."""
    cider: float
    """CIDEr-D, times 10 as its code has it: 0 to 10. Papers print it times 100. It depends on the set: word
    frequencies are those of the references of these videos."""
    meteor: float | None
    """In [0, 1]; None: not asked for."""
    num_videos: int
    min_references: int
    """Fewest references of a video."""
    max_references: int
    tokenizer: str
    scorer: str
    notes: tuple[str, ...]
    """What whoever reads the scores has to be told."""
    per_video: Mapping[str, VideoCaptionScores]
    """By video id, in their order."""

    def as_dict(self) -> dict[str, float]:
        """The scores by name; "meteor" only where it was asked for."""
        names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "meteor")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def evaluate(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    meteor: bool | Meteor = False,
) -> CaptionScores:
    """Scores of one caption a video, both mappings by video id, sentences as they were written.

    BLEU, ROUGE-L and CIDEr-D are the scorers of pycocoevalcap (extra `metrics`), plain Python, after a tokeniser of
    our own that stands for its Java one (`videolm.metrics.ptb`). An empty hypothesis is scored, not dropped.
    `meteor=True` starts Java for this call; an open `Meteor` is used and left open. METEOR that cannot be had is
    an error.

    Raises ValueError where a video is in one mapping only or has no reference, and ImportError without the extra.
    """
    _check(hypotheses, references)
    # sorted, so that sums are the same to the last bit in whatever order videos come
    ids = sorted(hypotheses)
    said = {video: [" ".join(tokenize(hypotheses[video]))] for video in ids}
    wanted = {video: [" ".join(tokenize(sentence)) for sentence in references[video]] for video in ids}
    if not any(any(sentences) for sentences in wanted.values()):
        raise ValueError("no reference has a word in it: there is nothing to compare the hypotheses with")
    bleu_scorer, rouge_scorer, cider_scorer = _scorers()
    (bleu_1, bleu_2, bleu_3, bleu_4), bleu_of_videos = bleu_scorer(wanted, said, verbose=0)
    rouge_l, rouge_of_videos = rouge_scorer(wanted, said)
    cider, cider_of_videos = cider_scorer(wanted, said)
    whole_meteor, meteor_of_videos = _meteor(said, wanted, meteor)
    per_video = {
        video: VideoCaptionScores(own_bleu, float(own_rouge), float(own_cider), own_meteor)
        for video, own_bleu, own_rouge, own_cider, own_meteor in zip(
            ids, bleu_of_videos[3], rouge_of_videos, cider_of_videos, meteor_of_videos, strict=True
        )
    }
    num_references = [len(references[video]) for video in ids]
    return CaptionScores(
        bleu_1=bleu_1,
        bleu_2=bleu_2,
        bleu_3=bleu_3,
        bleu_4=bleu_4,
        rouge_l=float(rouge_l),
        cider=float(cider),
        meteor=whole_meteor,
        num_videos=len(ids),
        min_references=min(num_references),
        max_references=max(num_references),
        tokenizer=PTB_VERSION,
        scorer=f"pycocoevalcap {version('pycocoevalcap')}"
        + (f", {METEOR_VERSION}" if meteor is not False else ""),
        notes=tuple(_notes(said, wanted)),
        per_video={video: per_video[video] for video in hypotheses},
    )


def _check(hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not hypotheses and not references:
        raise ValueError("hypotheses and references are empty: there is nothing to score")
    for here, there, what in (
        (hypotheses, references, "a hypothesis but no references"),
        (references, hypotheses, "references but no hypothesis"),
    ):
        alone = [video for video in here if video not in there]
        if alone:
            raise ValueError(
                f"{_counted(alone, len(here))} {what}: score the same videos on both sides, "
                'with "" where a model said nothing'
            )
    strings = [video for video, sentences in references.items() if isinstance(sentences, str)]
    if strings:
        raise TypeError(f"references of {strings[0]!r} are one string: pass a list of sentences, [sentence]")
    without = [video for video, sentences in references.items() if not len(sentences)]
    if without:
        raise ValueError(f"{_counted(without, len(references))} no reference: leave them out on both sides")


def _notes(said: Mapping[str, list[str]], wanted: Mapping[str, list[str]]) -> list[str]:
    notes = []
    single = [video for video, sentences in wanted.items() if len(sentences) < 2]
    if single:
        notes.append(
            f"{_counted(single, len(wanted))} one reference only: such scores do not compare with those against "
            "many. A retrieval split is no captioning split"
        )
    silent = [video for video, (sentence,) in said.items() if not sentence]
    if silent:
        notes.append(f"{_counted(silent, len(said))} a hypothesis without a word, scored as it is")
    wordless = [video for video, sentences in wanted.items() if not all(sentences)]
    if wordless:
        notes.append(f"{_counted(wordless, len(wanted))} a reference without a word, counted as it is")
    if len(said) == 1:
        notes.append(
            "CIDEr of one video is 0 by its definition, which weighs words by how few videos have them"
        )
    return notes


def _counted(videos: Sequence[str], total: int) -> str:
    return (
        f"{len(videos)} of {total} videos (the first is {videos[0]!r}) {'have' if len(videos) > 1 else 'has'}"
    )


def _meteor(
    said: Mapping[str, list[str]], wanted: Mapping[str, list[str]], meteor: bool | Meteor
) -> tuple[float | None, Sequence[float | None]]:
    if meteor is False:
        return None, [None] * len(said)
    if meteor is True:
        with Meteor() as program:
            return _meteor(said, wanted, program)
    return meteor.score([sentence for (sentence,) in said.values()], list(wanted.values()))


def _scorers() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ImportError("caption metrics need pycocoevalcap: pip install 'videolm[metrics]'") from error
    return Bleu(4).compute_score, Rouge().compute_score, Cider().compute_score
