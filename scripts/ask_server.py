"""Ask models of a running `potstill serve-local` one question, with the official openai client.

python scripts/ask_server.py QUESTION MODEL [MODEL ...]

The server's address is taken from OPENAI_BASE_URL.
"""

import os
import sys

from openai import OpenAI


def main() -> None:
    """List the models, ask the named ones plainly, and the first once more as a stream."""
    question, *asked = sys.argv[1:]
    client = OpenAI(api_key=os.environ.get("OPENAI_API_KEY", "none-needed-on-loopback"))
    print(f"models: {', '.join(model.id for model in client.models.list())}")
    messages = [{"role": "user", "content": question}]
    for name in asked:
        reply = client.chat.completions.create(model=name, messages=messages)
        print(f"{name}: {reply.choices[0].message.content}  ({reply.usage.completion_tokens} tokens)")
    print(f"{asked[0]}, streaming: ", end="")
    for chunk in client.chat.completions.create(model=asked[0], messages=messages, stream=True):
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="|")
    print()


if __name__ == "__main__":
    main()
