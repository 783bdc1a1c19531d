"""ml_collections.ConfigDict, and for a type checker a form of it whose fields may hold anything."""

from typing import TYPE_CHECKING, Any

import ml_collections

if TYPE_CHECKING:
    class ConfigDict(ml_collections.ConfigDict):
        """A checker infers the values of the library's own from its code, as a union that no field fits."""

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...
        def __getitem__(self, name: str) -> Any: ...
        def to_dict(self) -> dict[str, Any]: ...
        def items(self) -> list[tuple[str, Any]]: ...
else:
    ConfigDict = ml_collections.ConfigDict
