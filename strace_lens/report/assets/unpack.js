// The edges of a trace out of their packed text, and the arithmetic of the token graph: the same as
// in strace_lens/traces/edges.py. An edge goes from a node of one level to one of the next.

/** Bytes of base64 text that holds a zlib stream. */
async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Whole numbers out of byte planes, lowest first. */
function joinPlanes(bytes, count) {
  const values = new Uint32Array(count);
  for (let plane = 0; plane * count < bytes.length; plane++) {
    for (let i = 0; i < count; i++) values[i] += bytes[plane * count + i] * 2 ** (8 * plane);
  }
  return values;
}

/** Edges by rising rank as typed arrays: kind (of KINDS), head, level, source and target token. */
async function unpackEdges(result) {
  const count = result.packed;
  const { layers, heads, tokens, parallel, mlp } = result.shape;
  const sublayers = mlp && !parallel ? 2 : 1;
  const ids = joinPlanes(await inflate(result.order), count);
  const edges = {
    count,
    kind: new Uint8Array(count),
    layer: new Uint16Array(count),
    head: new Int16Array(count).fill(-1),
    level: new Uint16Array(count),
    source: new Uint16Array(count),
    target: new Uint16Array(count),
    importance: null,
  };
  const attention = layers * heads * tokens * tokens;
  const residual = layers * sublayers * tokens;
  for (let i = 0; i < count; i++) {
    let id = ids[i];
    if (id < attention) {
      edges.kind[i] = 1;
      edges.source[i] = id % tokens;
      edges.target[i] = Math.floor(id / tokens) % tokens;
      edges.head[i] = Math.floor(id / (tokens * tokens)) % heads;
      edges.layer[i] = Math.floor(id / (tokens * tokens * heads));
      edges.level[i] = sublayers * edges.layer[i];
    } else if ((id -= attention) < residual) {
      edges.source[i] = edges.target[i] = id % tokens;
      edges.level[i] = Math.floor(id / tokens);
      edges.layer[i] = Math.floor(edges.level[i] / sublayers);
    } else {
      id -= residual;
      edges.kind[i] = 2;
      edges.source[i] = edges.target[i] = id % tokens;
      edges.layer[i] = Math.floor(id / tokens);
      edges.level[i] = sublayers * edges.layer[i] + sublayers - 1;
    }
  }
  if (result.importance !== null) {
    const upper = joinPlanes(await inflate(result.importance), count);
    edges.importance = new Float32Array(upper.map((half) => half * 65536).buffer);
  }
  edges.byLevel = ranksByLevel(edges, result.levels.length);
  return edges;
}

/** For each level, the ranks of the edges that leave it, rising. */
function ranksByLevel(edges, levels) {
  const counts = new Uint32Array(levels);
  for (let i = 0; i < edges.count; i++) counts[edges.level[i]]++;
  const lists = Array.from(counts, (n) => new Uint32Array(n));
  counts.fill(0);
  for (let i = 0; i < edges.count; i++) {
    const level = edges.level[i];
    lists[level][counts[level]++] = i;
  }
  return lists;
}
