"""One small record per format, to start a fuzzer from and to check that each is recognised."""

from __future__ import annotations

import json
from typing import Any

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "r"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}}]
ITEMS = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "r"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
]
IDS = {"prompt_token_ids": [1, 2], "token_ids": [3, 4], "logprobs": [-0.5, -0.25]}
PARTS_IN = [{"role": "user", "parts": [{"type": "text", "content": "q"}]}]
PARTS_OUT = [{"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "f", "arguments": {"x": 1}}]}]
BODY = {
    "id": "b",
    "model": "m",
    "prompt_token_ids": [1, 2],
    "choices": [{"index": 0, "message": ANSWER, "token_ids": [3, 4]}],
}
GEMINI = {"role": "model", "parts": [{"text": "a"}, {"function_call": {"name": "f", "args": {"x": 1}}}]}
EVENT = {"timestamp": "t", "source": "agent", "action": "run", "args": {"content": "x", "thought": "y"}}
ATIF_STEP = {
    "step_id": 2,
    "source": "agent",
    "message": "",
    "reasoning_content": "hm",
    "tool_calls": [{"tool_call_id": "c", "function_name": "f", "arguments": {"x": 1}}],
    "observation": {"results": [{"source_call_id": "c", "content": "r"}]},
    "metrics": {"prompt_token_ids": [1, 2], "completion_token_ids": [3, 4], "logprobs": [-0.5, -0.25]},
}
FLAT = {
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.content": "q",
    "llm.input_messages.2.message.role": "tool",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "f",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": "{}",
    "llm.output_messages.0.message.contents.0.message_content.text": "a",
    "llm.tools.0.tool.json_schema": json.dumps(TOOLS[0]),
    "openinference.span.kind": "LLM",
}
GENAI = {
    "gen_ai.operation.name": "chat",
    "gen_ai.input.messages": json.dumps(PARTS_IN),
    "gen_ai.output.messages": json.dumps(PARTS_OUT),
    "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "s"}]),
    "gen_ai.tool.definitions": json.dumps(TOOLS),
}
CHOICE = {"name": "gen_ai.choice", "attributes": {"message": json.dumps(CALLS)}}
OTLP_ATTRIBUTES = [
    {"key": "gen_ai.prompt.0.content", "value": {"stringValue": "q"}},
    {"key": "x", "value": {"arrayValue": {"values": []}}},
]
VERCEL = {
    "ai.prompt.messages": json.dumps([USER]),
    "ai.response.toolCalls": json.dumps([{"toolName": "f", "input": "{}"}]),
}
ADK_CALL = {
    "gcp.vertex.agent.llm_request": json.dumps({"contents": [GEMINI]}),
    "gcp.vertex.agent.llm_response": json.dumps({"content": GEMINI}),
}


def span(**fields: Any) -> dict[str, Any]:
    """A span of trace `t`."""
    return {"trace_id": "t", "span_id": "1", "parent_span_id": None, "start_time": 1, "attributes": {}, **fields}


SEEDS: dict[str, list[Any]] = {
    "native": [
        {"hintdistill_trace": 1, "id": "n", "messages": [USER, {**ANSWER, **IDS, "given": True}], "tools": TOOLS}
    ],
    "openai_chat": [
        {
            "id": "x",
            "task_id": 3,
            "messages": [USER, CALLS, RESULT, {**ANSWER, **IDS}],
            "tools": TOOLS,
            "reward": "1.0",
        },
        {"prompt": [USER], "completion": [ANSWER], "tools": json.dumps(TOOLS)},
        [
            USER,
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": [{"type": "text", "text": "r"}]},
        ],
    ],
    "openai_responses": [
        {"input": [USER, *ITEMS], "output": ITEMS, "instructions": "s", "tools": TOOLS, "object": "response"},
        ITEMS,
    ],
    "nemo_gym": [
        {
            "responses_create_params": {"input": "q", "tools": []},
            "response": {"output": ITEMS, "model": "m"},
            "reward": 1,
            "_ng_task_index": 1,
        },
        {
            "responses_create_params": {"input": [], "metadata": {"instance_id": "i"}},
            "response": {"output": [ITEMS[:2], ITEMS]},
        },
    ],
    "anthropic": [
        {
            "system": [{"type": "text", "text": "s"}],
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm"},
                        {"type": "tool_use", "id": "c", "name": "f", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "r"}]}
                    ],
                },
            ],
            "tools": [{"name": "f", "input_schema": {}}],
            "response": {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "a"}]},
        }
    ],
    "vllm": [
        BODY,
        {"request": {"messages": [USER], "tools": TOOLS}, "response": BODY},
        {"messages": [USER], "response": BODY},
    ],
    "verifiers": [
        {
            "example_id": 1,
            "prompt": [USER],
            "completion": [ANSWER],
            "reward": 1,
            "trajectory": [{"tokens": {"prompt_ids": [1], "completion_ids": [2]}}],
        }
    ],
    "qwen_code": [
        {
            "sessionId": "s",
            "uuid": "1",
            "parentUuid": None,
            "type": "user",
            "message": {"role": "user", "parts": [{"text": "q"}]},
        },
        {
            "sessionId": "s",
            "uuid": "2",
            "parentUuid": "1",
            "type": "assistant",
            "model": "m",
            "message": {
                "role": "model",
                "parts": [
                    {"text": "hm", "thought": True},
                    {"functionCall": {"id": "c", "name": "f", "args": {"x": "1"}}},
                ],
            },
        },
        {
            "sessionId": "s",
            "uuid": "3",
            "parentUuid": "2",
            "type": "tool_result",
            "message": {
                "role": "user",
                "parts": [{"functionResponse": {"id": "c", "name": "f", "response": {"output": "r"}}}],
            },
        },
    ],
    "bedrock": [
        {
            "modelId": "m",
            "system": [{"text": "s"}],
            "messages": [
                {"role": "user", "content": [{"text": "q"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"reasoningContent": {"reasoningText": {"text": "hm"}}},
                        {"toolUse": {"toolUseId": "c", "name": "f", "input": {"x": "1"}}},
                    ],
                },
                {"role": "user", "content": [{"toolResult": {"toolUseId": "c", "content": [{"json": {"y": "r"}}]}}]},
            ],
            "toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object"}}}}]},
            "output": {"message": {"role": "assistant", "content": [{"text": "a"}]}},
            "stopReason": "end_turn",
        }
    ],
    "pydantic_ai": [
        [
            {
                "kind": "request",
                "instructions": "s",
                "parts": [{"part_kind": "user-prompt", "content": "q"}],
            },
            {
                "kind": "response",
                "model_name": "m",
                "parts": [
                    {"part_kind": "thinking", "content": "hm"},
                    {"part_kind": "tool-call", "tool_name": "f", "args": '{"x": "1"}', "tool_call_id": "c"},
                ],
            },
            {
                "kind": "request",
                "parts": [{"part_kind": "tool-return", "tool_name": "f", "content": "r", "tool_call_id": "c"}],
            },
            {"kind": "response", "parts": [{"part_kind": "text", "content": "a"}]},
        ]
    ],
    "langgraph": [
        {
            "values": {
                "messages": [
                    {"type": "human", "content": "q"},
                    {
                        "type": "ai",
                        "content": "",
                        "tool_calls": [{"name": "f", "args": {"x": "1"}, "id": "c", "type": "tool_call"}],
                        "invalid_tool_calls": [{"name": "g", "args": "{", "id": "d", "error": "bad"}],
                    },
                    {"type": "tool", "content": "r", "tool_call_id": "c", "name": "f"},
                    {"type": "ai", "content": "a", "response_metadata": {"model_name": "m"}},
                ]
            },
            "config": {"configurable": {"thread_id": "t"}},
        }
    ],
    "mlflow": [
        {
            "info": {"trace_id": "t", "state": "OK"},
            "data": {
                "spans": [
                    {
                        "span_id": "1",
                        "parent_span_id": None,
                        "start_time_unix_nano": 1,
                        "attributes": {
                            "mlflow.spanType": '"CHAT_MODEL"',
                            "mlflow.spanInputs": json.dumps({"messages": [USER], "tools": TOOLS}),
                            "mlflow.spanOutputs": json.dumps({"choices": [{"message": CALLS}]}),
                        },
                    }
                ]
            },
        }
    ],
    "verifiers_v1": [
        {
            "id": "e",
            "task": {"id": "t"},
            "tools": [{"name": "f"}],
            "rewards": {"r": {"value": 1, "weight": 2}},
            "nodes": [
                {"parent": None, "message": USER, "token_ids": [1]},
                {
                    "parent": 0,
                    "message": ANSWER,
                    "sampled": True,
                    "token_ids": [2, 3],
                    "mask": [0, 1],
                    "logprobs": [0, -1.0],
                },
            ],
        }
    ],
    "rllm": [
        {
            "id": "t:0",
            "task": {"id": "t"},
            "trajectories": [
                {
                    "name": "n",
                    "reward": 1,
                    "steps": [{"chat_completions": [USER, ANSWER], "response_ids": [1], "prompt_ids": [2]}],
                }
            ],
        }
    ],
    "atif": [
        {
            "schema_version": "ATIF-v1.7",
            "agent": {"name": "a", "version": "1", "tool_definitions": TOOLS},
            "steps": [{"step_id": 1, "source": "user", "message": "q"}, ATIF_STEP],
        }
    ],
    "inspect": [
        {
            "eval": {"task": "t"},
            "samples": [
                {
                    "id": 1,
                    "epoch": 1,
                    "target": "",
                    "messages": [
                        {"role": "system", "content": "attachment://h"},
                        USER,
                        {**CALLS, "source": "generate"},
                        {**RESULT, "error": {"message": "e"}},
                    ],
                    "attachments": {"h": "x"},
                    "events": [
                        {"event": "model", "tools": TOOLS, "call": {"response": {"choices": [{"message": CALLS}]}}}
                    ],
                    "scores": {"m": {"value": "C"}},
                }
            ],
        }
    ],
    "tau2": [
        {
            "task_id": "1",
            "reward_info": {"reward": 1},
            "messages": [
                USER,
                {**ANSWER, "tool_calls": [{"id": "c", "name": "f", "arguments": {}}], "raw_data": BODY},
                {"id": "c", "role": "tool", "content": "r"},
            ],
        }
    ],
    "toolbench": [
        {
            "win": True,
            "tree": {
                "tree": {
                    "node_type": "Action",
                    "description": "f",
                    "children": [{"node_type": "Action Input", "description": '{"x": "1"}', "observation": "r"}],
                }
            },
            "answer_generation": {"query": "q", "function": [{"name": "f"}], "train_messages": []},
        },
        {
            "trys": [{"chain": [{"node_type": "Thought", "description": "hm"}]}],
            "answer_generation": {"query": "q", "train_messages": [[USER, ANSWER]]},
        },
    ],
    "langfuse": [
        {
            "trace": {"id": "t", "scores": [{"name": "s", "value": 1}]},
            "observations": [
                {
                    "id": "1",
                    "type": "GENERATION",
                    "startTime": "1",
                    "input": json.dumps(json.dumps([USER])),
                    "output": json.dumps(ANSWER),
                    "metadata": json.dumps({"attributes": GENAI}),
                },
                {"id": "2", "type": "TOOL", "name": "f", "startTime": "2", "input": "{}", "output": "r"},
                {
                    "id": "3",
                    "type": "GENERATION",
                    "startTime": "3",
                    "parentObservationId": "1",
                    "input": "user: q\nassistant: None",
                    "output": json.dumps(
                        {"generations": [[{"message": {"id": ["AIMessage"], "kwargs": {"content": "a"}}}]]}
                    ),
                },
            ],
        }
    ],
    "langsmith": [
        {
            "post": [
                {
                    "id": "r",
                    "trace_id": "t",
                    "run_type": "llm",
                    "start_time": "1",
                    "inputs": {"messages": [{"type": "human", "content": "q"}]},
                }
            ],
            "patch": [{"id": "r", "dotted_order": "1", "outputs": {"choices": [{"message": CALLS}]}}],
        }
    ],
    "sessions": [{"log": {"entries": [{"request": {}, "response": {}}]}}],
    "adk": [
        {
            "id": "s",
            "events": [
                {"author": "user", "content": {"role": "user", "parts": [{"text": "q"}]}},
                {"author": "a", "content": GEMINI},
            ],
            "event_logs": [{"model_request": {"config": {"system_instruction": "s", "tools": []}}}],
        },
        {
            "eval_cases": [
                {
                    "eval_id": "e",
                    "conversation": [
                        {
                            "user_content": {"role": "user", "parts": [{"text": "q"}]},
                            "intermediate_data": {"tool_uses": [{"name": "f", "args": {}}]},
                            "final_response": GEMINI,
                        }
                    ],
                }
            ]
        },
    ],
    "openhands": [
        {
            "instance_id": "i",
            "history": [
                {**EVENT, "tool_call_metadata": {"tool_call_id": "c", "model_response": BODY}},
                {**EVENT, "observation": "run", "content": "r"},
            ],
        }
    ],
    "openhands_events": [
        {**EVENT, "source": "user", "action": "message"},
        {**EVENT, "action": "message"},
    ],
    "swe_agent": [
        {"history": [USER, {**CALLS, "thought": "t"}, {**RESULT, "tool_call_ids": ["c"]}], "trajectory": [], "info": {}}
    ],
    "claude_code": [
        {"type": "user", "uuid": "1", "parentUuid": None, "sessionId": "s", "message": USER},
        {
            "type": "assistant",
            "uuid": "2",
            "parentUuid": "1",
            "sessionId": "s",
            "message": {
                "id": "m",
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}],
            },
        },
        {
            "type": "user",
            "uuid": "3",
            "parentUuid": "2",
            "sessionId": "s",
            "message": {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
        },
        {"type": "system", "subtype": "compact_boundary", "uuid": "4", "sessionId": "s"},
    ],
    "codex": [
        {"type": "session_meta", "payload": {"id": "s", "instructions": "i"}},
        {"type": "turn_context", "payload": {"model": "m"}},
        *({"type": "response_item", "payload": i} for i in ITEMS),
        {"type": "compacted", "payload": {"message": "m"}},
        {"type": "response_item", "payload": ITEMS[3]},
    ],
    "eval_protocol": [
        {"env_index": 0, "step": 0, "messages": [USER, ANSWER]},
        {"env_index": 0, "step": 1, "messages": [USER, ANSWER, USER, {**ANSWER, "control_plane_step": {"reward": 1}}]},
    ],
    "spans": [
        span(attributes=GENAI),
        span(span_id="2", parent_span_id="1", attributes=FLAT),
        span(span_id="3", events=[CHOICE]),
        span(span_id="4", attributes=VERCEL),
        span(span_id="5", attributes=ADK_CALL),
        {
            "resourceSpans": [
                {"scopeSpans": [{"spans": [{"traceId": "u", "spanId": "1", "attributes": OTLP_ATTRIBUTES}]}]}
            ]
        },
        span(span_id="6", span_events=[{"body": {"input": {"messages": [USER]}, "output": {"messages": [ANSWER]}}}]),
    ],
    "sharegpt": [
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "gpt", "value": "a"},
            ],
            "tools": "[]",
        }
    ],
    "conversation": [USER, CALLS, RESULT],
}
"""By the format's name: for record scope each a record, for file scope the values of one file."""
