//! What is run: the tasks and the rows, as plain data, and the recipe that a task and a row make together.

/// A data set, a model, and the optimizer that people would take.
pub struct Task {
    pub name: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    /// Steps of a run.
    pub steps: u64,
    /// What guessing reaches: the accuracy of a run that diverged.
    pub chance: f64,
    /// The tables of the recipe but for `[optimizer]`, `[samuel]` and `[train]`; `{assets}` stands for the folder of the assets,
    /// `{seed}` for the seed.
    pub model: &'static str,
    /// Keys of `[optimizer]`: the kind and its own keys, without learning rate, schedule and weight decay.
    pub optimizer: &'static str,
    pub weight_decay: f64,
    pub schedules: &'static [&'static str],
    /// Keys of `[train]`.
    pub train: &'static str,
    pub judged: Judged,
}

/// What the accuracy of a run is.
#[derive(Clone, Copy, PartialEq)]
pub enum Judged {
    /// That on the test data at the end.
    AtTheEnd,
    /// The mean of two: on the evaluation data at this step, where the data shifts, and on the test data at the end.
    BeforeAndAfter(u64),
}

pub const RATES: [f64; 5] = [1.0, 0.1, 0.01, 0.001, 0.0001];
const SCHEDULES: &[&str] = &["constant", "linear", "cosine"];

const FASHION: &str = "model = \"{assets}/samuel/fashion-cnn-ts17.onnx\"\n\
    [data]\ntrain = \"{assets}/samuel/fashion-train-images-idx3\"\neval = \"{assets}/samuel/fashion-val-images-idx3\"\n\
    test = \"{assets}/samuel/fashion-test-images-idx3\"\nmean = [0.286]\nstd = [0.353]\n\
    [freeze]\ntrainable = [\"*\"]\n";

const MOVIE: &str = "model = \"{assets}/minilm-l6-ts17.onnx\"\n\
    [data]\ntrain = \"{assets}/movie/train.tsv\"\neval = \"{assets}/movie/val.tsv\"\ntest = \"{assets}/movie/test.tsv\"\n\
    text = \"text\"\nlabel = \"label\"\ntokenizer = \"{assets}/minilm-l6/tokenizer.json\"\nmax_length = 64\n\
    [head]\ninput = \"sentence_embedding\"\nkind = \"classifier\"\nclasses = 2\n\
    [cola]\nrank = 8\nalpha = 16\nlinks = 1\ntargets = [\"*/query/MatMul\", \"*/value/MatMul\"]\n";

const NEWS: &str = "model = \"{assets}/minilm-l6-ts17.onnx\"\n\
    [data]\ntrain = \"{assets}/samuel/news-train.tsv\"\neval = \"{assets}/samuel/news-val.tsv\"\n\
    test = \"{assets}/samuel/news-test.tsv\"\n\
    text = \"text\"\nlabel = \"label\"\ntokenizer = \"{assets}/minilm-l6/tokenizer.json\"\nmax_length = 32\n\
    [head]\ninput = \"sentence_embedding\"\nkind = \"classifier\"\nclasses = 20\n\
    [cola]\nrank = 8\nalpha = 16\nlinks = 1\ntargets = [\"*/query/MatMul\", \"*/value/MatMul\"]\n";

const SHIFT: &str = "model = \"{assets}/samuel/shift-cnn-ts17.onnx\"\n\
    [data]\ntrain = \"{assets}/samuel/shift-train-{seed}-images-idx3\"\neval = \"{assets}/samuel/shift-before-images-idx3\"\n\
    test = \"{assets}/samuel/shift-after-images-idx3\"\nmean = [0.286]\nstd = [0.353]\n\
    [freeze]\ntrainable = [\"*\"]\n";

const CIFAR: &str = "model = \"{assets}/resnet20-ts17.onnx\"\n\
    [data]\ntrain = \"{assets}/samuel/cifar-train-images-idx4\"\ntest = \"{assets}/samuel/cifar-test-images-idx4\"\n\
    mean = [0.4914, 0.4822, 0.4465]\nstd = [0.247, 0.2435, 0.2616]\n\
    [freeze]\ntrainable = [\"*\"]\n[train-mode]\n";

pub const TASKS: &[Task] = &[
    Task {
        name: "fashion",
        title: "Fashion-MNIST",
        about: "A network of two convolutions and two linear layers (105,866 parameters, random weights) on 20,000 images; 5,000 \
            validate, 10,000 test. SGD with momentum 0.9, batches of 64, 3 epochs.",
        steps: 936,
        chance: 0.1,
        model: FASHION,
        optimizer: "kind = \"sgd\"\nmomentum = 0.9\n",
        weight_decay: 0.0,
        schedules: SCHEDULES,
        train: "epochs = 3\nbatch = 64\neval_batch = 250\ndrop_last = true\neval_every = 936\n",
        judged: Judged::AtTheEnd,
    },
    Task {
        name: "movie",
        title: "Film reviews",
        about: "MiniLM-L6 with adapters of rank 8 on query and value and a new classifier, the task of [cola.md](cola.md) with one \
            link: 1,000 sentences, 500 validate, 1,000 test. AdamW with weight decay 0.01, batches of 8, 6 epochs.",
        steps: 750,
        chance: 0.5,
        model: MOVIE,
        optimizer: "kind = \"adamw\"\n",
        weight_decay: 0.01,
        schedules: SCHEDULES,
        train: "epochs = 6\nbatch = 8\neval_every = 750\n",
        judged: Judged::AtTheEnd,
    },
    Task {
        name: "news",
        title: "20 Newsgroups",
        about: "The same model and adapters on the first 32 tokens of news, 20 classes: 2,000 texts, 500 validate (both of the \
            standard training split), 1,000 of the standard test split test. AdamW with weight decay 0.01, batches of 16, 4 epochs.",
        steps: 500,
        chance: 0.05,
        model: NEWS,
        optimizer: "kind = \"adamw\"\n",
        weight_decay: 0.01,
        schedules: SCHEDULES,
        train: "epochs = 4\nbatch = 16\neval_every = 500\n",
        judged: Judged::AtTheEnd,
    },
    Task {
        name: "shift",
        title: "Fashion-MNIST, shifting",
        about: "The first network, trained briefly on 5,000 other images. For half of the steps four of five labels are drawn at \
            random, so that it is best to learn slowly; then the images are turned by 90 degrees, with correct labels that are permuted, \
            so that it is best to learn fast. Every image comes once in each half. SGD with momentum 0.9, batches of 64.",
        steps: 624,
        chance: 0.1,
        model: SHIFT,
        optimizer: "kind = \"sgd\"\nmomentum = 0.9\n",
        weight_decay: 0.0,
        schedules: SCHEDULES,
        train: "epochs = 1\nbatch = 64\neval_batch = 250\nshuffle = false\neval_every = 312\n",
        judged: Judged::BeforeAndAfter(312),
    },
    Task {
        name: "cifar",
        title: "CIFAR-10",
        about: "ResNet-20 with random weights on all 50,000 images, without augmentation; the 10,000 test images test. SGD with \
            momentum 0.9 and weight decay 5e-4, batches of 128, 6 epochs.",
        steps: 2346,
        chance: 0.1,
        model: CIFAR,
        optimizer: "kind = \"sgd\"\nmomentum = 0.9\n",
        weight_decay: 5e-4,
        schedules: SCHEDULES,
        train: "epochs = 6\nbatch = 128\neval_batch = 250\neval_every = \"never\"\n",
        judged: Judged::AtTheEnd,
    },
];

/// The adaptive optimizers that need no rate: a row, the kind, the rate that their authors say, constant.
pub const WITHOUT_RATE: &[(&str, &str, f64)] =
    &[("prodigy", "prodigy", 1.0), ("schedule-free", "schedule-free-adamw", 0.0025), ("d-adapt", "d-adapt-adam", 1.0)];

/// A row with a table `[samuel]`.
pub struct Samuel {
    pub row: &'static str,
    pub what: &'static str,
    /// Its keys besides `rates`; `{twelfth}` stands for a twelfth of the run in steps.
    pub keys: &'static str,
    pub rates: Rates,
    /// What the experts are.
    pub experts: Experts,
    /// The tasks that it is run on.
    pub tasks: &'static [&'static str],
    pub ablation: bool,
}

/// What the experts are copies of, and how their rates go.
#[derive(Clone, Copy, PartialEq)]
pub enum Experts {
    /// What `[samuel]` takes where a recipe says nothing: AdamW, constant rates, averaged.
    Default,
    /// Another kind of optimizer, constant rates, averaged.
    Kind(&'static str),
    /// The task's optimizer with this schedule, not averaged; nobody is retired.
    Own(&'static str),
}

/// The experts' learning rates.
#[derive(Clone, Copy, PartialEq)]
pub enum Rates {
    /// All of the grid.
    Grid,
    /// The one of the grid's best cell.
    Best,
}

const ALL: &[&str] = &["fashion", "movie", "news", "shift", "cifar"];
/// Where a run takes less than a minute.
const ABLATED: &[&str] = &["fashion", "shift"];

/// The row that the ablations differ from.
pub const DEFAULTS: &str = "independent";

pub const SAMUEL: &[Samuel] = &[
    plain("samuel", "`[samuel]` as it is: independent experts of AdamW, constant rates, averaged", "", ALL),
    plain("samuel-shared", "the same with a shared gradient", "mode = \"shared\"\n", ALL),
    Samuel {
        experts: Experts::Kind("adagrad"),
        ..plain("adagrad", "the same with experts of AdaGrad, independent", "", &["fashion", "shift", "cifar"])
    },
    samuel(DEFAULTS, "experts of the task's optimizer, falling rates, independent", "mode = \"independent\"\n", ALL),
    samuel("shared", "experts of the task's optimizer, falling rates, shared gradient", "mode = \"shared\"\n", ALL),
    samuel(
        "intervals",
        "experts of the task's optimizer, falling rates, geometric intervals",
        "mode = \"intervals\"\n",
        ABLATED,
    ),
    ablation("play-sample", "plays a sampled expert", "play = \"sample\"\n"),
    ablation("play-average", "plays the average", "play = \"average\"\n"),
    ablation("restart-1", "restart at 2/3", "restart_every = [0.6666666667]\n"),
    ablation("restart-2", "restarts at 2/3, 8/9", "restart_every = [0.6666666667, 0.8888888889]\n"),
    ablation("restart-11", "restarts every 1/12 of the run", "restart_every = {twelfth}\n"),
    constant("constant-0", "constant rates, no restart", "restart_every = 0\n"),
    constant("constant-1", "constant rates, restart at 2/3", "restart_every = [0.6666666667]\n"),
    constant("constant-2", "constant rates, restarts at 2/3, 8/9", "restart_every = [0.6666666667, 0.8888888889]\n"),
    constant("constant-3", "constant rates, restarts at 1/2, 3/4, 7/8", "restart_every = [0.5, 0.75, 0.875]\n"),
    constant("constant-11", "constant rates, restarts every 1/12 of the run", "restart_every = {twelfth}\n"),
    Samuel {
        rates: Rates::Best,
        ..constant(
            "one-expert",
            "one expert, the grid's best rate, constant: only restarts at 2/3, 8/9",
            "restart_every = [0.6666666667, 0.8888888889]\n",
        )
    },
];

const fn plain(row: &'static str, what: &'static str, keys: &'static str, tasks: &'static [&'static str]) -> Samuel {
    Samuel { row, what, keys, rates: Rates::Grid, experts: Experts::Default, tasks, ablation: false }
}

const fn samuel(row: &'static str, what: &'static str, keys: &'static str, tasks: &'static [&'static str]) -> Samuel {
    Samuel { experts: Experts::Own("linear"), ..plain(row, what, keys, tasks) }
}

const fn ablation(row: &'static str, what: &'static str, keys: &'static str) -> Samuel {
    Samuel { ablation: true, ..samuel(row, what, keys, ABLATED) }
}

const fn constant(row: &'static str, what: &'static str, keys: &'static str) -> Samuel {
    Samuel { experts: Experts::Own("constant"), ..ablation(row, what, keys) }
}

/// A line of a task's tables.
#[derive(Clone)]
pub struct Row {
    pub name: String,
    pub what: String,
    pub group: Group,
    /// Whether its recipe is known; otherwise it waits for the grid.
    pub ready: bool,
    /// Keys of `[optimizer]`, and the table `[samuel]` if there is one.
    optimizer: String,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Group {
    /// A learning rate and a schedule of the grid, by the rate's place in [`RATES`].
    Grid {
        rate: usize,
    },
    /// What needs no grid: SAMUEL with its defaults, and other optimizers.
    Main,
    Ablation,
}

impl Task {
    /// All cells of the grid.
    pub fn grid(&self) -> Vec<Row> {
        let cell = |schedule: usize, rate: usize| {
            let (name, value) = (self.schedules[schedule], RATES[rate]);
            Row {
                name: format!("grid-{name}-{value}"),
                what: format!("{name} {value}"),
                group: Group::Grid { rate },
                ready: true,
                optimizer: self.base(value, name),
            }
        };
        (0..self.schedules.len()).flat_map(|s| (0..RATES.len()).map(move |r| cell(s, r))).collect()
    }
    /// The rows beside the grid. `best`: the learning rate of the grid's best cell, once it is known.
    pub fn rows(&self, best: Option<f64>) -> Vec<Row> {
        let without_rate = WITHOUT_RATE.iter().map(|(row, kind, rate)| Row {
            name: row.to_string(),
            what: format!("`{kind}`, rate {rate}"),
            group: Group::Main,
            ready: true,
            optimizer: optimizer(&format!("kind = \"{kind}\"\n"), *rate, "constant", self.weight_decay),
        });
        let here = SAMUEL.iter().filter(|s| s.tasks.contains(&self.name));
        let samuel = here.map(|samuel| self.samuel(samuel, best));
        without_rate.chain(samuel).collect()
    }
    fn samuel(&self, samuel: &Samuel, best: Option<f64>) -> Row {
        let rates = if samuel.rates == Rates::Grid { RATES.to_vec() } else { Vec::from_iter(best) };
        let mut keys = samuel.keys.replace("{twelfth}", &(self.steps / 12).to_string());
        if matches!(samuel.experts, Experts::Own(_)) {
            keys += "retire = 0.0\n";
        }
        Row {
            name: samuel.row.to_string(),
            what: samuel.what.to_string(),
            group: if samuel.ablation { Group::Ablation } else { Group::Main },
            ready: !rates.is_empty(),
            optimizer: format!("{}[samuel]\nrates = {rates:?}\n{keys}", self.under_experts(samuel.experts)),
        }
    }
    /// `[optimizer]` without a learning rate.
    fn under_experts(&self, experts: Experts) -> String {
        let own = match experts {
            Experts::Default => String::new(),
            Experts::Kind(kind) => format!("kind = \"{kind}\"\n"),
            Experts::Own(schedule) => format!("{}schedule = \"{schedule}\"\n", self.optimizer),
        };
        format!("[optimizer]\n{own}weight_decay = {:?}\n", self.weight_decay)
    }
    fn base(&self, rate: f64, schedule: &str) -> String {
        optimizer(self.optimizer, rate, schedule, self.weight_decay)
    }
    /// The recipe of a run.
    pub fn recipe(&self, row: &Row, seed: usize, assets: &str, output: &str) -> String {
        format!(
            "output = \"{output}\"\n{}{}[train]\n{}seed = {seed}\ncheckpoint_every = \"never\"\non_nonfinite = \"stop\"\n",
            self.model.replace("{assets}", assets).replace("{seed}", &seed.to_string()),
            row.optimizer,
            self.train,
        )
    }
}

/// The table `[optimizer]`.
fn optimizer(kind: &str, rate: f64, schedule: &str, weight_decay: f64) -> String {
    format!("[optimizer]\n{kind}learning_rate = {rate:?}\nschedule = \"{schedule}\"\nweight_decay = {weight_decay:?}\n")
}
