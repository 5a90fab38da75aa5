// A client typed from openapi.yaml can send what the contract allows: every filter is optional.
import type { operations } from "../.generated/openapi.ts";

type Body<Name extends keyof operations> = NonNullable<
  operations[Name]["requestBody"]
>["content"]["application/json"];

export const bodies: [
  Body<"listEvents">[],
  Body<"countUnread">[],
  Body<"markRead">[],
  Body<"markUnread">[],
  Body<"markAllRead">[],
] = [
  [{}, { take: 5 }, { showUnread: true, take: 1 }, { from_timestamp: null, context: 1 }, { cursor: null }],
  [{}, { userId: "ada" }],
  [{ id: 5 }, { ids: [5, 6] }, { id: 5, ids: [6] }],
  [{ id: 5 }, { ids: [5, 6] }],
  [{}, { upTo: 5 }, { upTo: 5, from_timestamp: "2026-11-01T00:00:00Z", contextId: null }],
];
