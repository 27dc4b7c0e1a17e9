//! Mutations of structure: of a model's nodes, attributes and shapes; of a text's tokens.

use onnx_protobuf::tensor_shape_proto::dimension;
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, TensorProto, ValueInfoProto, type_proto,
};

/// Operators and attributes to put in place of others, values of string attributes, tokens of the texts.
const OPS: &str = include_str!("../words/ops.txt");
const ATTRS: &str = include_str!("../words/attrs.txt");
const STRINGS: &str = include_str!("../words/strings.txt");
const TOKENS: &str = include_str!("../words/tokens.txt");

/// xorshift64*, seeded by the fuzzer.
struct Rng(u64);

impl Rng {
    fn new(seed: u32) -> Rng {
        Rng((u64::from(seed) << 1 | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n.max(1)
    }
    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { Some(&of[self.below(of.len())]) }
    }
    fn word(&mut self, of: &'static str) -> &'static str {
        let words: Vec<&str> = of.split_whitespace().collect();
        self.pick(&words).copied().unwrap_or("")
    }
    fn number(&mut self) -> i64 {
        const ODD: [i64; 18] =
            [0, 1, -1, 2, 3, 4, 5, 7, 8, -2, -3, 16, 64, 255, i64::MAX, i64::MIN, 1 << 31, 1 << 40];
        if self.below(4) == 0 { self.below(1000) as i64 - 20 } else { ODD[self.below(ODD.len())] }
    }
}

/// Mutates the model behind the byte of options in `data[..size]`; its new size, or `None` where `data` is not
/// a model or what came of it is too large.
pub fn model(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> Option<usize> {
    let mut rng = Rng::new(seed);
    let (&choice, bytes) = data.get(..size)?.split_first()?;
    let mut m = ModelProto::parse_from_bytes(bytes).ok()?;
    let choice = if rng.below(8) == 0 { rng.below(256) as u8 } else { choice };
    for _ in 0..1 + rng.below(3) {
        match rng.below(24) {
            0 => {
                let n = rng.below(m.opset_import.len().max(1));
                m.opset_import.get_mut(n)?.version = 1 + rng.below(28) as i64;
            }
            1 if !m.functions.is_empty() => {
                let i = rng.below(m.functions.len());
                let f = &mut m.functions[i];
                let names = f.input.clone();
                nodes(&mut f.node, &names, &mut rng);
            }
            _ => graph(m.graph.as_mut()?, &mut rng, 0),
        }
    }
    let bytes = m.write_to_bytes().ok()?;
    let n = bytes.len() + 1;
    if n > max_size || n > data.len() {
        return None;
    }
    data[0] = choice;
    data[1..n].copy_from_slice(&bytes);
    Some(n)
}

fn graph(g: &mut GraphProto, rng: &mut Rng, depth: usize) {
    // into a subgraph
    if depth < 4 && rng.below(2) == 0 {
        let inner: Vec<(usize, usize)> = (g.node.iter().enumerate())
            .flat_map(|(i, n)| (0..n.attribute.len()).map(move |a| (i, a)))
            .filter(|&(i, a)| g.node[i].attribute[a].g.is_some())
            .collect();
        if let Some(&(i, a)) = rng.pick(&inner)
            && let Some(sub) = g.node[i].attribute[a].g.as_mut()
        {
            return graph(sub, rng, depth + 1);
        }
    }
    match rng.below(12) {
        0 if !g.initializer.is_empty() => {
            let i = rng.below(g.initializer.len());
            tensor(&mut g.initializer[i], rng);
        }
        1 if !g.input.is_empty() => {
            let i = rng.below(g.input.len());
            value(&mut g.input[i], rng);
        }
        2 if !g.output.is_empty() => {
            let i = rng.below(g.output.len());
            if rng.below(2) == 0 {
                value(&mut g.output[i], rng);
            } else if let Some(n) = rng.pick(&g.node)
                && let Some(name) = rng.pick(&n.output).cloned()
            {
                g.output[i].name = name;
            }
        }
        3 if g.node.len() > 1 => cut(g, rng),
        _ => {
            let names: Vec<String> = g
                .input
                .iter()
                .map(|v| &v.name)
                .chain(g.initializer.iter().map(|t| &t.name))
                .cloned()
                .collect();
            nodes(&mut g.node, &names, rng);
        }
    }
}

/// Leaves a stretch of the nodes; small models are fuzzed faster.
fn cut(g: &mut GraphProto, rng: &mut Rng) {
    let keep = 1 + rng.below(g.node.len().min(12));
    let from = rng.below(g.node.len() - keep.min(g.node.len()) + 1);
    g.node = g.node[from..from + keep].to_vec();
    if let Some(name) = g.node.last().and_then(|n| n.output.first()).cloned()
        && let Some(out) = g.output.first_mut()
    {
        out.name = name;
    }
    g.output.truncate(1);
    let used: Vec<&String> = g.node.iter().flat_map(|n| &n.input).collect();
    g.initializer.retain(|t| used.contains(&&t.name));
}

fn nodes(list: &mut Vec<NodeProto>, names: &[String], rng: &mut Rng) {
    if list.is_empty() {
        return;
    }
    let i = rng.below(list.len());
    let earlier: Vec<String> =
        list[..i].iter().flat_map(|n| n.output.iter().cloned()).chain(names.iter().cloned()).collect();
    match rng.below(14) {
        0 => {
            list.remove(i);
        }
        1 => {
            let mut copy = list[i].clone();
            for o in &mut copy.output {
                o.push('_');
            }
            list.insert(i + 1, copy);
        }
        2 => {
            let j = rng.below(list.len());
            list.swap(i, j);
        }
        3 | 4 => {
            let n = &mut list[i];
            n.op_type = rng.word(OPS).into();
            if rng.below(4) == 0 {
                n.domain = ["", "com.microsoft", "ai.onnx.ml", "local"][rng.below(4)].into();
            }
        }
        5 => {
            let n = &mut list[i];
            match (rng.below(3), rng.pick(&earlier)) {
                (0, Some(name)) => n.input.push(name.clone()),
                (1, _) => {
                    n.input.pop();
                }
                _ => n.output.push(format!("extra{}", rng.below(4))),
            }
        }
        6 | 7 => {
            let n = &mut list[i];
            let at = rng.below(n.input.len().max(1));
            if let (Some(slot), Some(name)) = (n.input.get_mut(at), rng.pick(&earlier)) {
                *slot = if rng.below(6) == 0 { String::new() } else { name.clone() };
            }
        }
        8 => {
            let donor = rng.below(list.len());
            let a = rng.pick(&list[donor].attribute).cloned();
            list[i].attribute.extend(a);
        }
        9 => {
            let n = &mut list[i];
            let mut a = AttributeProto::new();
            a.name = rng.word(ATTRS).into();
            attribute(&mut a, rng);
            n.attribute.push(a);
        }
        _ => {
            let n = &mut list[i];
            let at = rng.below(n.attribute.len().max(1));
            match n.attribute.get_mut(at) {
                Some(_) if rng.below(6) == 0 => {
                    n.attribute.remove(at);
                }
                Some(a) => attribute(a, rng),
                None => n.op_type = rng.word(OPS).into(),
            }
        }
    }
}

fn attribute(a: &mut AttributeProto, rng: &mut Rng) {
    use onnx_protobuf::attribute_proto::AttributeType as T;
    if let Some(t) = a.t.as_mut()
        && rng.below(4) != 0
    {
        return tensor(t, rng);
    }
    if !a.ints.is_empty() && rng.below(4) != 0 {
        let at = rng.below(a.ints.len());
        match rng.below(5) {
            0 => a.ints.push(rng.number()),
            1 => {
                a.ints.remove(at);
            }
            _ => a.ints[at] = rng.number(),
        }
        return;
    }
    match rng.below(6) {
        0 => {
            a.type_ = T::FLOAT.into();
            a.f = [0.0, 1.0, -1.0, 0.5, f32::NAN, f32::INFINITY, 1e30, 1e-30][rng.below(8)];
        }
        1 => {
            a.type_ = T::STRING.into();
            a.s = rng.word(STRINGS).into();
        }
        2 => {
            a.type_ = T::INTS.into();
            a.ints = (0..rng.below(5)).map(|_| rng.number()).collect();
        }
        _ => {
            a.type_ = T::INT.into();
            a.i = rng.number();
        }
    }
}

fn tensor(t: &mut TensorProto, rng: &mut Rng) {
    match rng.below(6) {
        0 => t.data_type = rng.below(27) as i32,
        1 if !t.dims.is_empty() => {
            let i = rng.below(t.dims.len());
            t.dims[i] = rng.number();
        }
        2 => {
            t.dims.pop();
        }
        3 => t.dims.push(1),
        _ if t.data_type == 7 => {
            let n = t.dims.iter().fold(1i64, |n, d| n.saturating_mul(*d)).clamp(0, 8);
            t.int64_data.clear();
            t.raw_data = (0..n).flat_map(|_| rng.number().to_le_bytes()).collect();
        }
        _ => {
            let at = rng.below(t.raw_data.len().max(1));
            if let Some(b) = t.raw_data.get_mut(at) {
                *b = rng.below(256) as u8;
            }
        }
    }
}

fn value(v: &mut ValueInfoProto, rng: &mut Rng) {
    let Some(type_proto::Value::TensorType(t)) = v.type_.as_mut().and_then(|t| t.value.as_mut()) else {
        return;
    };
    if rng.below(3) == 0 {
        t.elem_type = rng.below(27) as i32;
        return;
    }
    let Some(shape) = t.shape.as_mut() else { return };
    let i = rng.below(shape.dim.len().max(1));
    match rng.below(5) {
        0 => {
            shape.dim.pop();
        }
        1 => {
            let copy = shape.dim.last().cloned().unwrap_or_default();
            shape.dim.push(copy);
        }
        2 => {
            if let Some(d) = shape.dim.get_mut(i) {
                d.value =
                    Some(dimension::Value::DimParam(["N", "M", "N + 1", "", "2*N"][rng.below(5)].into()));
            }
        }
        _ => {
            if let Some(d) = shape.dim.get_mut(i) {
                d.value = Some(dimension::Value::DimValue(rng.number()));
            }
        }
    }
}

/// Mutates tokens of the text behind the first byte: swaps, repeats, drops them, or brings others.
pub fn text(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> Option<usize> {
    let mut rng = Rng::new(seed);
    let (&form, bytes) = data.get(..size)?.split_first()?;
    let source = std::str::from_utf8(bytes).ok()?;
    let mut tokens: Vec<String> = Vec::new();
    for c in source.chars() {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.' || c == '%';
        match tokens.last_mut() {
            Some(t) if word(c) && t.chars().last().is_some_and(word) => t.push(c),
            _ => tokens.push(c.into()),
        }
    }
    if tokens.is_empty() {
        return None;
    }
    for _ in 0..1 + rng.below(4) {
        let (i, j) = (rng.below(tokens.len()), rng.below(tokens.len()));
        match rng.below(8) {
            0 => tokens.swap(i, j),
            1 => tokens[i] = tokens[j].clone(),
            2 if tokens.len() > 1 => {
                tokens.remove(i);
            }
            3 => {
                // a line again elsewhere
                let end = tokens[i..].iter().position(|t| t == "\n").map_or(tokens.len(), |n| i + n + 1);
                let line = tokens[i..end].to_vec();
                tokens.splice(j..j, line);
            }
            4 => {
                let end = (i + 1 + rng.below(8)).min(tokens.len());
                if end - i < tokens.len() {
                    tokens.drain(i..end);
                }
            }
            5 => tokens[i] = rng.number().to_string(),
            _ => tokens[i] = rng.word(TOKENS).into(),
        }
    }
    let text = tokens.concat();
    let n = text.len() + 1;
    if n > max_size || n > data.len() {
        return None;
    }
    data[0] = if rng.below(50) == 0 { rng.below(3) as u8 } else { form };
    data[1..n].copy_from_slice(text.as_bytes());
    Some(n)
}
