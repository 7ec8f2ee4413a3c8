"""Ask every role of a running `potstill serve-local` one question, with the official openai client.

The server's address is taken from OPENAI_BASE_URL.
"""

import os
import sys

from openai import OpenAI


def main() -> None:
    """List the models, ask each role plainly, and the first once more as a stream."""
    question = sys.argv[1]
    client = OpenAI(api_key=os.environ.get("OPENAI_API_KEY", "none-needed-on-loopback"))
    models = [model.id for model in client.models.list()]
    print(f"models: {', '.join(models)}")
    roles = [name for name in models if name != "hybrid"]
    messages = [{"role": "user", "content": question}]
    for role in roles:
        reply = client.chat.completions.create(model=role, messages=messages)
        print(f"{role}: {reply.choices[0].message.content}  ({reply.usage.completion_tokens} tokens)")
    print(f"{roles[0]}, streaming: ", end="")
    for chunk in client.chat.completions.create(model=roles[0], messages=messages, stream=True):
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="|")
    print()


if __name__ == "__main__":
    main()
