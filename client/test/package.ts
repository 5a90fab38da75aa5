// The package as a TypeScript page uses it, by its name and with its types.
import { Bell } from "systemevent-read";
import { ApiError, listEvents, type Access } from "systemevent-read/api.js";

const access: Access = { token: "..." };

export async function use(): Promise<string | null> {
  const { total } = await listEvents(access, { take: 5 });
  const { nextCursor } = await listEvents(access, { cursor: null });
  const bell = new Bell({ token: () => access.token, user: "ada" });
  const end = bell.subscribe(() => console.log(bell.state.badge?.count, bell.state.events[0]?.id));
  bell.markRead([1, 2n]);
  end();
  // @ts-expect-error a page has no total
  (await listEvents(access, { cursor: null })).total;
  // @ts-expect-error not an id
  bell.markRead("1");
  return nextCursor ?? new ApiError(String(total), 0).requestId;
}
