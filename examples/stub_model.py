"""Plays a language model that can call functions, in the shape of OpenAI's chat completions.

Asked for a standard deviation, it first writes code that fails, reads the error, writes better code, and answers with what
that printed. It has no other knowledge: without a working code interpreter it cannot answer.
"""

import json


def complete(messages, tools):
    """The next message of the assistant."""
    name = tools[0]["function"]["name"]
    outputs = [message["content"] for message in messages if message["role"] == "tool"]
    if not outputs:
        return call(name, 1, "numbers = [3, 1, 4, 1, 5, 9, 2, 6]\nround(statistics.pstdev(numbers), 3)")
    if "NameError" in outputs[-1]:
        # The first cell's list is still there.
        return call(name, 2, "import statistics\nround(statistics.pstdev(numbers), 3)")
    return {"role": "assistant", "content": f"The standard deviation is {outputs[-1]}.", "tool_calls": None}


def call(name, number, code):
    function = {"name": name, "arguments": json.dumps({"code": code})}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}]}
