// Texts -> numbers of tokens, as BERT's WordPiece of the library `tokenizers` has them. `align publish` refuses others.

const isSpace = (one) => /\p{White_Space}/u.test(one);

/** Whether a character is in a set, which is written as the first and the last of each run: browsers differ in theirs. */
function among(runs) {
  return (one) => {
    const code = one.codePointAt(0);
    for (let at = 0; at < runs.length && runs[at] <= code; at += 2) if (code <= runs[at + 1]) return true;
    return false;
  };
}

/** A text as BERT's normalizer leaves it: `options` are its fields in tokenizer.json. Lower case knows no neighbours. */
function normalized(text, options, {isDropped, isIdeograph, isMark}) {
  let characters = [...text];
  if (options.clean_text) characters = characters.filter((one) => !isDropped(one)).map((one) => isSpace(one) ? " " : one);
  if (options.handle_chinese_chars) characters = characters.map((one) => isIdeograph(one) ? ` ${one} ` : one);
  let whole = characters.join("");
  if (options.strip_accents ?? options.lowercase) whole = [...whole.normalize("NFD")].filter((one) => !isMark(one)).join("");
  return options.lowercase ? [...whole].map((one) => one.toLowerCase()).join("") : whole;
}

/** The words of a normalised text: between spaces, each sign of punctuation alone. */
function words(text, isPunctuation) {
  const found = [];
  let open = false;
  for (const one of text) {
    const alone = isPunctuation(one);
    if (!isSpace(one)) {
      if (open && !alone) found[found.length - 1] += one; else found.push(one);
    }
    open = !alone && !isSpace(one);
  }
  return found;
}

/** A function from a text to its tokens' numbers. `file` is tokenizer.json; at most `max` tokens come out. */
export function tokenizer(file, max) {
  const {vocab, unk_token, continuing_subword_prefix: prefix, max_input_chars_per_word: longest} = file.model;
  const numbers = new Map(Object.entries(vocab));
  const special = new Map(file.added_tokens.map((one) => [one.content, one.id]));
  const unknown = numbers.get(unk_token);
  const sets = Object.fromEntries(Object.entries(file.characters).map(([name, runs]) => [name, among(runs)]));

  function pieces(word) {
    const characters = [...word];
    if (characters.length > longest) return [unknown];
    const found = [];
    for (let start = 0, end; start < characters.length; start = end) {
      let number;
      for (end = characters.length; end > start; end -= 1) {
        number = numbers.get((start ? prefix : "") + characters.slice(start, end).join(""));
        if (number !== undefined) break;
      }
      if (number === undefined) return [unknown];
      found.push(number);
    }
    return found;
  }

  // Names of special tokens in a text are these tokens, as the library reads them; the longest name wins.
  const names = [...special.keys()].sort((one, other) => other.length - one.length);
  const parts = names.length ? new RegExp(`(${names.map((name) => name.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|")})`) : /$^/;
  return (text) => {
    const inner = text.split(parts).flatMap((part) => special.has(part) ? [special.get(part)]
      : words(normalized(part, file.normalizer, sets), sets.isPunctuation).flatMap(pieces));
    return [file.ends[0], ...inner.slice(0, max - 2), file.ends[1]];
  };
}
