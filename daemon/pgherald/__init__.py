"""pgherald turns what Postgres finds due into exactly one push through Firebase Cloud Messaging, and one record.

The map of the program is `service`; the commands are in `cli`; what a word means is in sql/README.md. For programs of
one's own, the pieces that the daemon itself runs on can be imported from here; they are loaded when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgherald.dispatcher import (
        Dependencies,
        DispatchConfig,
        PushNotificationDispatcher,
        dispatch_prompts,
        evaluate_and_dispatch,
    )
    from pgherald.model import (
        DispatchResult,
        DispatchSummary,
        Failed,
        NoToken,
        Prompt,
        Sent,
        TokenRevoked,
        Unknown,
        idempotency_key,
    )

__all__ = [
    "Dependencies",
    "DispatchConfig",
    "DispatchResult",
    "DispatchSummary",
    "Failed",
    "NoToken",
    "Prompt",
    "PushNotificationDispatcher",
    "Sent",
    "TokenRevoked",
    "Unknown",
    "dispatch_prompts",
    "evaluate_and_dispatch",
    "idempotency_key",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    model = importlib.import_module("pgherald.model")
    return getattr(model if hasattr(model, name) else importlib.import_module("pgherald.dispatcher"), name)
