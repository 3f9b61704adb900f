"""The models of others that are known to load, as plain data; nothing here is downloaded or checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KnownModel:
    """A model that `load` takes by its name."""

    name: str
    """"mini", or the id on the Hugging Face hub."""
    layout: str
    """The format of its weights."""
    num_parameters: int
    licence: str
    """Of the weights, as their publisher states it; "see source" where that was not checked."""
    source: str
    """The page to read before it is used: the one that states the licence."""
    weights_sha256: str | None = None
    """Hash of the loaded weights as in `ModelInfo`; None: not checked here."""
    scores: dict[str, Any] = field(default_factory=dict)
    """Measured by this project; empty: not measured here."""
    heads: tuple[str, ...] = ()
    """By which it speaks: captioning, videoqa."""


def _hub(
    name: str,
    layout: str,
    num_parameters: int,
    licence: str,
    *,
    source: str | None = None,
    heads: tuple[str, ...] = (),
) -> KnownModel:
    source = source or f"https://huggingface.co/{name}"
    return KnownModel(name, layout, num_parameters, licence, source, heads=heads)


_CLIP, _SIGLIP = "transformers CLIP", "transformers SigLIP"
_GIT, _BLIP2 = "transformers GIT", "transformers BLIP-2"
_SPEAKS = ("captioning", "videoqa")
# Where the licence of OpenAI's models stands.
_OPENAI = "https://github.com/openai/CLIP"

KNOWN_MODELS = (
    _hub("openai/clip-vit-base-patch32", _CLIP, 151_277_313, "MIT", source=_OPENAI),
    _hub("openai/clip-vit-base-patch16", _CLIP, 149_620_737, "MIT", source=_OPENAI),
    _hub("openai/clip-vit-large-patch14", _CLIP, 427_616_513, "MIT", source=_OPENAI),
    _hub("openai/clip-vit-large-patch14-336", _CLIP, 427_944_193, "MIT", source=_OPENAI),
    _hub("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", _CLIP, 151_277_313, "MIT"),
    _hub("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", _CLIP, 149_620_737, "MIT"),
    _hub("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", _CLIP, 427_616_513, "MIT"),
    _hub("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", _CLIP, 986_109_441, "MIT"),
    _hub("facebook/metaclip-b32-400m", _CLIP, 151_277_313, "CC-BY-NC-4.0"),
    _hub("facebook/metaclip-b16-400m", _CLIP, 149_620_737, "CC-BY-NC-4.0"),
    _hub("facebook/metaclip-l14-400m", _CLIP, 427_616_513, "CC-BY-NC-4.0"),
    _hub("google/siglip-base-patch16-224", _SIGLIP, 203_155_970, "Apache-2.0"),
    _hub("google/siglip-so400m-patch14-384", _SIGLIP, 877_960_498, "Apache-2.0"),
    _hub("google/siglip2-base-patch16-224", _SIGLIP, 375_187_970, "Apache-2.0"),
    _hub("google/siglip2-so400m-patch14-384", _SIGLIP, 1_136_008_498, "Apache-2.0"),
    _hub("microsoft/git-base-vatex", _GIT, 176_623_674, "see source", heads=_SPEAKS),
    _hub("microsoft/git-base-msrvtt-qa", _GIT, 176_623_674, "see source", heads=_SPEAKS),
    _hub("Salesforce/blip2-opt-2.7b", _BLIP2, 3_744_679_936, "see source", heads=_SPEAKS),
    _hub("Searchium-ai/clip4clip-webvid150k", _CLIP, 151_277_313, "see source"),
)
