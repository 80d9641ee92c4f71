"""The loop of OpenAI's function calling: the model asks for code to be run until it has its answer."""

import json
import os

from e2b_code_interpreter import Sandbox

import stub_model

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "run_python",
            "description": "Runs Python in a notebook that keeps its state. The value of the last line is returned.",
            "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
        },
    }
]
QUESTION = "What is the standard deviation of 3, 1, 4, 1, 5, 9, 2 and 6? Give three digits."


def complete(messages):
    if "OPENAI_API_KEY" not in os.environ:
        return stub_model.complete(messages, TOOLS)
    from openai import OpenAI

    answer = OpenAI().chat.completions.create(model=os.environ.get("OPENAI_MODEL", "gpt-4o"), messages=messages, tools=TOOLS)
    return answer.choices[0].message.model_dump()


def run_python(sandbox, code):
    execution = sandbox.run_code(code)
    if execution.error:
        return f"{execution.error.name}: {execution.error.value}"
    return execution.text or "".join(execution.logs.stdout)


def main():
    messages = [{"role": "user", "content": QUESTION}]
    with Sandbox.create() as sandbox:
        while True:
            message = complete(messages)
            messages.append(message)
            if not message["tool_calls"]:
                break
            for call in message["tool_calls"]:
                output = run_python(sandbox, json.loads(call["function"]["arguments"])["code"])
                print(f"{call['id']}: {output}")
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})
    print(message["content"])


if __name__ == "__main__":
    main()
