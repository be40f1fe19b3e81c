"""Which run belongs to which browser session, so that a new one ends the old one."""

from __future__ import annotations

import threading

from workbench.progress import CancelToken


class Sessions:
    """One running computation per browser session.

    Gradio's `cancels=` frees the queue slot, not the thread, so a run is ended by its token.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, CancelToken] = {}

    def start(self, session: str) -> CancelToken:
        """Token of a new run; the session's earlier run is cancelled."""
        token = CancelToken()
        with self._lock:
            earlier = self._tokens.get(session)
            self._tokens[session] = token
        if earlier:
            earlier.cancel()
        return token

    def stop(self, session: str) -> bool:
        """Cancel the session's run; False where none runs."""
        with self._lock:
            token = self._tokens.pop(session, None)
        if token:
            token.cancel()
        return token is not None

    def is_current(self, session: str, token: CancelToken) -> bool:
        """False once a newer run of the session started."""
        with self._lock:
            return self._tokens.get(session) in (token, None)

    def end(self, session: str, token: CancelToken) -> None:
        """Forget a finished run, unless a newer one took its place."""
        with self._lock:
            if self._tokens.get(session) is token:
                del self._tokens[session]
