//! Growing groups: where an operator goes, and which groups become one.

use super::expr::Class;
use super::group::{Arg, Core, Group, Item, MAX_ITEMS, MAX_ROW, Out, What};
use super::layout;
use super::program::{Fold, Width};
use super::view::{BufId, View, Walk, dense_strides};
use super::{Lowering, Place, Work};
use sartor_ir::{NodeId, Operator, Result, Value};

impl Lowering<'_> {
    /// Where a result is stored. If its only reader is a Transpose whose result is wanted dense, it is stored the way
    /// the Transpose will see it; then it is not in its natural order.
    pub(crate) fn storage(&mut self, value: Value, shape: &[usize], keep_last: bool) -> (View, bool) {
        let natural = self.fresh(shape.to_vec());
        let Some(perm) = self.transposing_reader(value, shape.len()) else { return (natural, true) };
        if keep_last && perm.last() != Some(&(shape.len() - 1)) {
            return (natural, true);
        }
        let stored: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
        let mut strides = vec![0; shape.len()];
        perm.iter().zip(dense_strides(&stored)).for_each(|(&p, s)| strides[p] = s);
        (View { strides, ..natural }, false)
    }
    fn transposing_reader(&self, value: Value, rank: usize) -> Option<Vec<usize>> {
        let reader = *self.uses.get(&value).filter(|_| self.single_use(value))?.first()?;
        let op = self.graph.node(reader).op().filter(|op| op.is("Transpose"))?;
        let result = Value { node: reader, slot: 0 };
        let wants_dense = |id: &NodeId| !["MatMul", "Gemm"].iter().any(|n| self.graph.node(*id).is(n));
        let dense = self.outputs.contains(&result) || self.uses.get(&result)?.iter().any(wants_dense);
        dense.then(|| super::nodes::permutation(op, rank)).flatten()
    }
    /// Whether a comparison with a number waits for its reader: what it compares is kept anyway (the mask of an activation's
    /// gradient is a question to its result), so the answer is not worth memory of its own.
    pub(crate) fn waits(&mut self, id: NodeId, op: &Operator) -> bool {
        const COMPARISONS: [&str; 4] = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"];
        let value = Value { node: id, slot: 0 };
        let inputs: Vec<Value> = self.graph.node_inputs(id).into_iter().flatten().collect();
        let unknown = inputs.iter().filter(|&&v| self.number(v).is_none()).count();
        let waits = COMPARISONS.contains(&op.name.as_str()) && unknown == 1 && self.single_use(value);
        if waits {
            self.waiting.insert(value);
        }
        waits
    }
    /// Computes a comparison that waits, in the group of one of these drafts or in one of its own.
    pub(crate) fn compute_waiting(&mut self, value: Value, readers: &[usize]) -> Result<()> {
        if !self.waiting.remove(&value) {
            return Ok(());
        }
        let shape = self.shape(value)?;
        let mut args = Vec::new();
        for input in self.graph.node_inputs(value.node).into_iter().flatten() {
            args.push(self.arg(input, &shape)?);
        }
        self.map_into(What::Node(value.node), args, value, Some(readers))
    }
    /// Adds an operator of a fusible class.
    pub(crate) fn fusible(&mut self, id: NodeId, op: &Operator, class: Class) -> Result<()> {
        let value = Value { node: id, slot: 0 };
        let inputs: Vec<Value> = self.graph.node_inputs(id).into_iter().flatten().collect();
        if inputs.iter().any(|v| self.waiting.contains(v)) {
            let made = |v: &Value| match self.places.get(v) {
                Some(Place::View(view)) => self.writer(view.buf),
                _ => None,
            };
            let mut readers: Vec<usize> = inputs.iter().filter_map(made).collect();
            readers.sort_by_key(|&d| std::cmp::Reverse(self.drafts[d].last));
            for value in inputs {
                self.compute_waiting(value, &readers)?;
            }
        }
        let shape = self.shape(value)?;
        let mut args = Vec::new();
        for input in self.graph.node_inputs(id) {
            args.push(match input {
                None => Arg::Missing,
                Some(v) => self.arg(v, &shape)?,
            });
        }
        if class == Class::Elementwise && self.graph.node_outputs(id).count() == 1 {
            return self.map(What::Node(id), args, value);
        }
        let cols = match class {
            Class::Elementwise => None,
            Class::Row => {
                let axis = sartor_ir::ops::normal_axis(op.attrs.int("axis", -1)?, shape.len())?;
                Some(shape[axis..].iter().product())
            }
        };
        let mut outs = Vec::new();
        for (slot, out) in self.graph.node_outputs(id).enumerate() {
            if self.graph.value_name(out).is_empty() {
                let view = self.fresh(Vec::new());
                outs.push(Out { value: None, view, width: Width::Row, natural: true });
                continue;
            }
            let out_shape = self.shape(out)?;
            let (view, natural) = self.storage(out, &out_shape, true);
            let width = if slot == 0 { Width::Full } else { Width::Row };
            outs.push(Out { value: Some(out), view, width, natural });
        }
        let item = Item { what: What::Node(id), args, width: Width::Full, outs, at: self.at };
        self.add_item(item, shape.iter().product(), cols);
        Ok(())
    }
    /// Adds an elementwise operation on operands of the result's shape. The result is stored channels last if an operand is. The gates of heads are multiplied in the order in
    /// which an attention makes them.
    pub(crate) fn map(&mut self, what: What, args: Vec<Arg>, value: Value) -> Result<()> {
        self.map_into(what, args, value, None)
    }
    /// The same, in the group of one of these drafts or in a new one, if any are given.
    fn map_into(&mut self, what: What, mut args: Vec<Arg>, value: Value, homes: Option<&[usize]>) -> Result<()> {
        let shape = self.shape(value)?;
        let numel = shape.iter().product();
        let last = |arg: &Arg| matches!(arg, Arg::View(view) if layout::is_channels_last(view));
        let moved = args.iter().any(last);
        let mut transpose = |perm: &[usize]| {
            for arg in &mut args {
                if let Arg::View(view) = arg {
                    *view = view.transposed(perm);
                }
            }
        };
        let (view, natural, place) = if moved {
            transpose(&layout::to_last(shape.len()));
            let view = self.fresh_last(&shape);
            let place = view.transposed(&layout::to_first(shape.len()));
            (view, true, place)
        } else if self.gates_heads(&what) {
            const HEADS_FIRST: [usize; 4] = [0, 2, 1, 3];
            transpose(&HEADS_FIRST);
            let place = self.fresh(shape);
            (place.transposed(&HEADS_FIRST), false, place)
        } else {
            let (view, natural) = self.storage(value, &shape, true);
            (view.clone(), natural, view)
        };
        let outs = vec![Out { value: Some(value), view, width: Width::Full, natural }];
        let item = Item { what, args, width: Width::Full, outs, at: self.at };
        match homes {
            None => self.add_item(item, numel, None),
            Some(homes) if homes.iter().any(|&d| self.try_join(d, &item, numel, None)) => {}
            Some(_) => self.start_group(item, numel, None),
        }
        self.places.insert(value, Place::View(place));
        Ok(())
    }
    /// An operand, broadcast to a shape.
    pub(crate) fn arg(&mut self, value: Value, shape: &[usize]) -> Result<Arg> {
        if let Some(number) = self.number(value) {
            return Ok(Arg::Const(number));
        }
        let view = self.view(value)?;
        match view.broadcast(shape) {
            Some(view) => Ok(Arg::View(view)),
            None => sartor_ir::bail!("{:?} does not broadcast to {shape:?}", view.shape),
        }
    }
    /// Sums, maxima or minima over the trailing axes; `shape` is that of the result.
    pub(crate) fn row_fold(
        &mut self,
        what: What,
        input: View,
        cols: usize,
        value: Option<Value>,
        shape: Vec<usize>,
    ) -> View {
        let numel = input.len();
        let view = self.fresh(shape);
        let out = Out { value, view: view.clone(), width: Width::Row, natural: true };
        let item = Item { what, args: vec![Arg::View(input)], width: Width::Full, outs: vec![out], at: self.at };
        self.add_item(item, numel, Some(cols));
        view
    }
    /// A dense copy of a view.
    pub(crate) fn copied(&mut self, input: View) -> View {
        let (numel, view) = (input.len(), self.fresh(input.shape.clone()));
        let out = Out { value: None, view: view.clone(), width: Width::Full, natural: true };
        let args = vec![Arg::View(input)];
        self.add_item(Item { what: What::Copy, args, width: Width::Full, outs: vec![out], at: self.at }, numel, None);
        view
    }
    /// Starts a group with the sum of products as its only item.
    pub(crate) fn start_contract(&mut self, core: Core, value: Value, view: View, natural: bool) {
        let reads = core.products.iter().flat_map(|p| [p.a.buf, p.b.buf]).collect();
        let writes = vec![view.buf];
        let out = Out { value: Some(value), view, width: Width::Full, natural };
        let item = Item { what: What::Products, args: Vec::new(), width: Width::Full, outs: vec![out], at: self.at };
        let numel = core.batch.iter().product::<usize>() * core.m * core.n;
        let cols = Some(core.n);
        self.draft(Work::Group(Group { numel, cols, items: vec![item], core: Some(core) }), reads, writes);
    }
    /// Adds an item to the group of one of its producers, or to a new one; registers its results.
    pub(crate) fn add_item(&mut self, mut item: Item, numel: usize, cols: Option<usize>) {
        if let Some(cols) = cols {
            self.make_walkable(&mut item, cols);
        }
        for out in &item.outs {
            if let Some(value) = out.value {
                self.places.insert(value, Place::View(out.view.clone()));
            }
        }
        let mut candidates: Vec<usize> = self.read_bufs(&item).filter_map(|b| self.writer(b)).collect();
        candidates.sort_by_key(|&d| std::cmp::Reverse(self.drafts[d].last));
        candidates.dedup();
        let Some(home) = candidates.iter().copied().find(|&d| self.try_join(d, &item, numel, cols)) else {
            self.start_group(item, numel, cols);
            return;
        };
        for other in candidates {
            if other != home && !self.single_program(other) {
                self.try_merge(home, other);
            }
        }
    }
    fn start_group(&mut self, item: Item, numel: usize, cols: Option<usize>) {
        let reads = self.read_bufs(&item).collect();
        let writes = item.outs.iter().map(|o| o.view.buf).collect();
        self.draft(Work::Group(Group { numel, cols, items: vec![item], core: None }), reads, writes);
    }
    /// Operands whose rows are not evenly spaced are copied; results that would be stored so keep their natural order.
    fn make_walkable(&mut self, item: &mut Item, cols: usize) {
        for arg in &mut item.args {
            if let Arg::View(view) = arg
                && Walk::new(view, cols).is_none()
            {
                *view = self.copied(view.clone());
            }
        }
        for out in &mut item.outs {
            if out.width == Width::Full && Walk::new(&out.view, cols).is_none() {
                (out.view, out.natural) = (View::dense(out.view.buf, out.view.shape.clone()), true);
            }
        }
    }
    fn single_program(&self, draft: usize) -> bool {
        !matches!(self.drafts[draft].work, Work::Group(_))
    }
    fn read_bufs<'i>(&self, item: &'i Item) -> impl Iterator<Item = BufId> + use<'i> {
        item.args.iter().filter_map(|arg| match arg {
            Arg::View(view) => Some(view.buf),
            _ => None,
        })
    }
    fn group(&self, draft: usize) -> Option<&Group> {
        match &self.drafts[draft].work {
            Work::Group(group) => Some(group),
            _ => None,
        }
    }
    fn try_join(&mut self, draft: usize, item: &Item, numel: usize, cols: Option<usize>) -> bool {
        let Some(group) = self.group(draft) else { return false };
        let mut item = item.clone();
        if numel != group.numel {
            // One number per row?
            let rows = group.cols.filter(|&c| c > 0).map(|c| group.numel / c);
            let plain = cols.is_none() && matches!(item.what, What::Node(_) | What::Copy | What::Truth);
            if rows != Some(numel) || !plain || item.outs.iter().any(|o| !o.natural) {
                return false;
            }
            item.width = Width::Row;
            item.outs.iter_mut().for_each(|o| o.width = Width::Row);
        }
        if group.items.len() >= MAX_ITEMS || (group.core.is_some() && cols.is_some_and(|c| c > MAX_ROW / 4)) {
            return false;
        }
        let Some(agreed) = group.agree(None, Some(&item), cols) else { return false };
        let outside = self.read_bufs(&item).filter_map(|b| self.writer(b)).filter(|&d| d != draft);
        if outside.into_iter().any(|d| self.depends(d, draft)) {
            return false;
        }
        let (reads, at) = (self.read_bufs(&item).collect::<Vec<_>>(), self.at);
        for out in &item.outs {
            self.producer[out.view.buf.index()] = Some(draft);
        }
        let target = &mut self.drafts[draft];
        target.reads.extend(reads);
        target.writes.extend(item.outs.iter().map(|o| o.view.buf));
        target.last = at;
        if let Work::Group(group) = &mut target.work {
            group.cols = agreed;
            group.items.push(item);
        }
        true
    }
    /// Whether `from` needs something that `target` makes, directly or not.
    ///
    /// No draft is passed over for its place in the graph's order: one that ends early may read a group that has grown
    /// since.
    pub(crate) fn depends(&self, from: usize, target: usize) -> bool {
        let mut seen = std::collections::HashSet::new();
        let mut stack = vec![from];
        while let Some(draft) = stack.pop() {
            if draft == target {
                return true;
            }
            if !seen.insert(draft) {
                continue;
            }
            stack.extend(self.drafts[draft].reads.iter().filter_map(|&b| self.writer(b)).filter(|&d| d != draft));
        }
        false
    }
    /// Whether a draft depends on another through a third.
    fn depends_indirectly(&self, from: usize, target: usize) -> bool {
        let producers = self.drafts[from].reads.iter().filter_map(|&b| self.writer(b));
        producers.filter(|&d| d != target && d != from).any(|d| self.depends(d, target))
    }
    /// Makes two groups one, if they agree and no third stands between them.
    fn try_merge(&mut self, home: usize, other: usize) -> bool {
        let (Some(a), Some(b)) = (self.group(home), self.group(other)) else { return false };
        let too_many = a.items.len() + b.items.len() > MAX_ITEMS;
        if a.numel != b.numel || too_many || (a.core.is_some() && b.core.is_some()) {
            return false;
        }
        let Some(cols) = a.agree(Some(b), None, None) else { return false };
        if self.depends_indirectly(home, other) || self.depends_indirectly(other, home) {
            return false;
        }
        self.absorb(home, other, cols);
        true
    }
    /// Moves everything of `other` into `home`.
    fn absorb(&mut self, home: usize, other: usize, cols: Option<usize>) {
        let moved = std::mem::replace(&mut self.drafts[other].work, Work::Merged(home));
        let (reads, writes) =
            (std::mem::take(&mut self.drafts[other].reads), std::mem::take(&mut self.drafts[other].writes));
        let last = self.drafts[other].last;
        let target = &mut self.drafts[home];
        target.reads.extend(reads);
        target.writes.extend(writes);
        target.last = target.last.max(last);
        if let (Work::Group(group), Work::Group(moved)) = (&mut target.work, moved) {
            group.cols = cols;
            group.items.extend(moved.items);
            group.order_items();
            match (&mut group.core, moved.core) {
                (Some(core), Some(more)) => core.products.extend(more.products),
                (core @ None, more) => *core = more,
                _ => {}
            }
        }
    }
    /// `product · number`, where nobody else reads the product: the number goes into the products.
    pub(crate) fn scale_products(&mut self, product: Value, factor: f32, result: Value) -> bool {
        let Some(draft) = self.pure_contract(product) else { return false };
        if let Work::Group(group) = &mut self.drafts[draft].work
            && group.items.len() == 1
        {
            group.core.iter_mut().flat_map(|c| &mut c.products).for_each(|p| p.alpha *= factor);
            self.places.remove(&product);
            self.rename_result(draft, result);
            return true;
        }
        false
    }
    /// `(products + …) + products`, where nobody else reads either: one contract with more products.
    pub(crate) fn add_products(&mut self, a: Value, b: Value, result: Value) -> bool {
        let (Some(x), Some(y)) = (self.pure_contract(a), self.pure_contract(b)) else { return false };
        let items = |d: usize| self.group(d).map_or(0, |g| g.items.len());
        let (home, other) = if items(y) == 1 { (x, y) } else { (y, x) };
        let (Some(g), Some(h)) = (self.group(home), self.group(other)) else { return false };
        let same = match (&g.core, &h.core) {
            (Some(p), Some(q)) => (p.m, p.n, &p.batch) == (q.m, q.n, &q.batch),
            _ => false,
        };
        if home == other || h.items.len() != 1 || !same {
            return false;
        }
        if self.depends(home, other) || self.depends(other, home) {
            return false;
        }
        let cols = g.cols;
        if let Work::Group(group) = &mut self.drafts[other].work {
            group.items.clear();
        }
        self.absorb(home, other, cols);
        self.drafts[home].last = self.at;
        self.places.remove(&a);
        self.places.remove(&b);
        self.rename_result(home, result);
        true
    }
    /// `products + addend`, where nobody else reads the products: stays linear, so that more products can be added.
    fn pure_contract(&self, value: Value) -> Option<usize> {
        let Some(Place::View(view)) = self.places.get(&value) else { return None };
        let draft = self.writer(view.buf)?;
        let windows = |g: &Group| g.core.iter().flat_map(|c| &c.products).any(|p| p.patch.is_some());
        let group = self.group(draft).filter(|g| g.is_linear() && !windows(g))?;
        let last = group.last_out().filter(|o| o.value == Some(value) && o.natural)?;
        (self.single_use(value) && last.view == *view).then_some(draft)
    }
    fn rename_result(&mut self, draft: usize, result: Value) {
        let Ok(shape) = self.shape(result) else { return };
        let whole = self.group(draft).and_then(|g| g.core.as_ref()).is_some_and(|c| c.batch.len() + 2 == shape.len());
        let (view, natural) = if whole { self.storage(result, &shape, true) } else { (self.fresh(shape), true) };
        self.producer[view.buf.index()] = Some(draft);
        self.drafts[draft].writes.push(view.buf);
        self.places.insert(result, Place::View(view.clone()));
        if let Work::Group(group) = &mut self.drafts[draft].work
            && let Some(out) = group.items.last_mut().and_then(|i| i.outs.first_mut())
        {
            *out = Out { value: Some(result), view, width: Width::Full, natural };
        }
    }
    /// `products + addend` as an item that keeps a contract linear. Returns whether it could.
    pub(crate) fn add_to_products(&mut self, product: Value, addend: Value, beta: f32, result: Value) -> Result<bool> {
        let Some(draft) = self.pure_contract(product) else { return Ok(false) };
        let shape = self.shape(result)?;
        if self.shape(product)? != shape {
            return Ok(false);
        }
        let addend = self.arg(addend, &shape)?;
        let Some(Place::View(view)) = self.places.get(&product).cloned() else { return Ok(false) };
        let (out, natural) = self.storage(result, &shape, true);
        let outs = vec![Out { value: Some(result), view: out.clone(), width: Width::Full, natural }];
        let args = vec![Arg::View(view), addend];
        let item = Item { what: What::AddScaled(beta), args, width: Width::Full, outs, at: self.at };
        if !self.try_join(draft, &item, shape.iter().product(), None) {
            return Ok(false);
        }
        self.places.insert(result, Place::View(out));
        Ok(true)
    }
}

/// The fold of a reduction operator: how, whether the operand is squared, whether it is a mean.
pub fn reduction(name: &str) -> Option<(Fold, bool, bool)> {
    match name {
        "ReduceSum" => Some((Fold::Sum, false, false)),
        "ReduceMean" => Some((Fold::Sum, false, true)),
        "ReduceSumSquare" => Some((Fold::Sum, true, false)),
        "ReduceMax" => Some((Fold::Max, false, false)),
        "ReduceMin" => Some((Fold::Min, false, false)),
        _ => None,
    }
}
