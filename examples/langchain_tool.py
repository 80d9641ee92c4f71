"""The code interpreter as a LangChain tool, its state shared by all calls."""

import json

from e2b_code_interpreter import Sandbox
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool

import stub_model


def code_interpreter(sandbox):
    def run_python(code: str) -> str:
        """Runs Python in a notebook that keeps its state. The value of the last line is returned."""
        execution = sandbox.run_code(code)
        return f"{execution.error.name}: {execution.error.value}" if execution.error else execution.text or ""

    return StructuredTool.from_function(run_python)


def ask(messages, tool):
    """Any LangChain model with `bind_tools` stands here; this one plays."""
    shown = [{"role": "tool" if message.type == "tool" else message.type, "content": message.content} for message in messages]
    reply = stub_model.complete(shown, [convert_to_openai_tool(tool)])
    calls = [
        {"name": call["function"]["name"], "args": json.loads(call["function"]["arguments"]), "id": call["id"]}
        for call in reply["tool_calls"] or []
    ]
    return AIMessage(content=reply["content"] or "", tool_calls=calls)


def main():
    with Sandbox.create() as sandbox:
        tool = code_interpreter(sandbox)
        messages = [HumanMessage("What is the standard deviation of 3, 1, 4, 1, 5, 9, 2 and 6?")]
        while True:
            answer = ask(messages, tool)
            messages.append(answer)
            if not answer.tool_calls:
                break
            for call in answer.tool_calls:
                # Given a whole call, a tool answers with a message.
                messages.append(tool.invoke({**call, "type": "tool_call"}))
                print(f"{call['id']}: {messages[-1].content}")
    print(answer.content)


if __name__ == "__main__":
    main()
