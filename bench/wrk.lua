-- wrk: each request has a token and ids of its own.
-- wrk ... -s wrk.lua URL -- TOKENS EVENTS IDS SEED
--   TOKENS  file, one token a line; threads walk through it, each from a place of its own
--   EVENTS  each organization has the events 1 to EVENTS
--   IDS     ids in a request, consecutive from a random one; 0 asks for the badge instead
--   SEED    a number
-- Prints one line: requests, microseconds, failures, p50 and p99 in microseconds.

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

local heads, body, position = {}, nil, 0

local function head(path, token)
  return "POST " .. path .. " HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    .. "Authorization: Bearer " .. token .. "\r\nContent-Length: "
end

local function marks(events, ids)
  if ids == 1 then
    return function() return '{"id":' .. math.random(events) .. "}" end
  end
  -- All ids joined, and where each starts: a request cuts its own out.
  local parts, starts, length = {}, {}, 1
  for event = 1, events do
    parts[event] = event .. ","
    starts[event] = length
    length = length + #parts[event]
  end
  starts[events + 1] = length
  local joined = table.concat(parts)
  return function()
    local first = math.random(events - ids + 1)
    return '{"ids":[' .. joined:sub(starts[first], starts[first + ids] - 2) .. "]}"
  end
end

function init(args)
  local events, ids, seed = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  math.randomseed(seed + number * 7919)
  local path = ids == 0 and "/systemevent" or "/systemevent/read"
  for token in io.lines(args[1]) do heads[#heads + 1] = head(path, token) end
  position = (seed + number * math.floor(#heads / 2)) % #heads
  body = ids == 0 and function() return '{"showUnread":true,"take":1}' end or marks(events, ids)
end

function request()
  position = position % #heads + 1
  local text = body()
  return heads[position] .. #text .. "\r\n\r\n" .. text
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("%d %d %d %d %d\n", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
