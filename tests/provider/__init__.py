"""A hosted provider to test with: a real HTTP server on loopback that speaks OpenAI's and Anthropic's dialects.

    with serve_provider(pace=Pace(polls=2)) as provider:
        client = openai.OpenAI(base_url=provider.url + "/v1", api_key=provider.key)

`server` has the sockets and keys, `openai_dialect` and `anthropic_dialect` a dialect each; `running` is how batches
end, `answers` what a request is answered, `faults` what can go wrong, `weather` what does so to calls, `state` what
outlives a restart, `recorder` a second server that should not hear the key.
"""

from tests.provider.faults import Faults, Limits, Pace
from tests.provider.recorder import Recorder, serve_recorder
from tests.provider.server import Provider, serve_provider

__all__ = ["Faults", "Limits", "Pace", "Provider", "Recorder", "serve_provider", "serve_recorder"]
