"""HfFolder: a model folder in the format of `transformers`, which `manta export` writes and other commands read.

config.json              architecture and shape of the model
model.safetensors        weights; or several files, listed in model.safetensors.index.json
tokenizer.json           vocabulary; tokenizer_config.json has the settings for AutoTokenizer
generation_config.json   default sampling
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from data.config import StoreConfig
from data.errors import InputError, ObjectNotFoundError, TokenizerError
from data.stores.open import open_store
from data.stores.store import Store
from data.tokens.hf_tokenizer import read_tokenizer
from data.tokens.tokenizer import Tokenizer
from model.hf.architecture import NoSuchModelError
from model.hf.convert import from_hf_config, from_hf_weights

CONFIG, WEIGHTS, WEIGHTS_INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer.json", "tokenizer_config.json", "generation_config.json"

_FILE = re.compile(r"[\w.-]+\.safetensors")


@dataclass(frozen=True)
class HfFolder:
    """A folder whose config.json describes a model that Manta has a counterpart of.

    Attributes:
        fields: content of config.json.
    """

    store: Store
    fields: Mapping[str, Any]

    @classmethod
    def open(cls, url: str, config: StoreConfig) -> HfFolder:
        """Opens the folder at a path or URL.

        Raises:
            InputError: there is no such folder, or Manta has no counterpart of its model.
        """
        store = open_store(url, config)
        try:
            fields = _json_in(store, CONFIG)
            from_hf_config(fields)
        except ObjectNotFoundError:
            raise InputError(
                f"{store.url_of()} has no {CONFIG}. Name a folder that `manta export` or save_pretrained has written."
            ) from None
        except NoSuchModelError as error:
            raise InputError(f"{store.url_of(CONFIG)}: {error}") from None
        return cls(store, fields)

    @property
    def url(self) -> str:
        """Path or URL of the folder."""
        return self.store.url_of()

    def tokenizer(self) -> Tokenizer | None:
        """Reads tokenizer.json; None where there is none.

        Raises:
            TokenizerError: Manta's tokenizers cannot give the same ids.
        """
        try:
            content = self.store.get(TOKENIZER)
        except ObjectNotFoundError:
            return None
        try:
            return read_tokenizer(content)
        except TokenizerError as error:
            raise TokenizerError(f"{self.store.url_of(TOKENIZER)}: {error}") from None

    def sampling(self) -> dict[str, Any]:
        """Fields of the recipe's `sample` that generation_config.json sets.

        Raises:
            InputError: the file is damaged.
        """
        try:
            found = _json_in(self.store, GENERATION_CONFIG)
        except ObjectNotFoundError:
            return {}
        if not isinstance(found, dict):
            raise InputError(f"{self.store.url_of(GENERATION_CONFIG)} holds no fields, but a {type(found).__name__}.")
        sample = {
            "temperature": found.get("temperature") if found.get("do_sample") else 0.0,
            "top_k": found.get("top_k") or None,  # transformers writes top_k = 0 and top_p = 1 for no limit
            "top_p": found.get("top_p") if found.get("top_p") != 1 else None,
            "max_new_tokens": found.get("max_new_tokens"),
            "beam_size": found.get("num_beams") if found.get("num_beams") != 1 else None,
        }
        return {name: value for name, value in sample.items() if value is not None}

    def weights(self) -> dict[str, Tensor]:
        """Reads the weights, float32, by the names of Manta's model.

        Raises:
            InputError: the files are missing or damaged, or do not fit config.json.
        """
        try:
            return from_hf_weights(from_hf_config(self.fields), self._tensors())
        except ObjectNotFoundError as error:
            raise InputError(
                f"{error} Manta reads weights from {WEIGHTS} or the files that {WEIGHTS_INDEX} lists. Load the model "
                "with transformers, and save it with save_pretrained."
            ) from None
        except NoSuchModelError as error:
            raise InputError(f"{self.url}: {error}") from None

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name in sorted(self._weight_files()):
            try:
                found = load(self.store.get(name))
            except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch has not
                raise InputError(f"{self.store.url_of(name)} is damaged or of another format: {error}") from None
            for tensor, values in found.items():
                if values.is_floating_point() and not values.isfinite().all():
                    raise InputError(f"{self.store.url_of(name)}: {tensor} has values that are no finite numbers.")
            tensors |= found
        return tensors

    def _weight_files(self) -> set[str]:
        """Names of the files with weights, in the folder itself."""
        if self.store.head(WEIGHTS_INDEX) is None:
            return {WEIGHTS}
        index, url = _json_in(self.store, WEIGHTS_INDEX), self.store.url_of(WEIGHTS_INDEX)
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not files:
            raise InputError(f"{url} has no weight_map, which names the file of each weight.")
        for name in files.values():
            if not isinstance(name, str) or not _FILE.fullmatch(name):
                raise InputError(f"{url}: {str(name)[:60]!r} is not the name of a .safetensors file in the folder.")
        return set(files.values())


def _json_in(store: Store, name: str) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: it is not JSON.
        ObjectNotFoundError: it does not exist.
    """
    content = store.get(name)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{store.url_of(name)} is not JSON ({error}). Download or export the folder again.") from None
