//! nginx's grammar, as `ngx_conf_read_token` in its `src/core/ngx_conf_file.c` reads it, with byte spans.

use std::ops::Range;

/// The text is not nginx configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct SyntaxError {
    /// Line, counted from 1.
    pub line: usize,
    /// What nginx's grammar does not allow there.
    pub problem: &'static str,
}

/// One word of a directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Bytes of the word as written, without its quotes.
    pub span: Range<usize>,
    /// Its value: escapes resolved, lossy UTF-8.
    pub value: String,
}

/// A directive: its words, and its block if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Name and arguments; never empty, except that a `…_by_lua_block` keeps its content to itself.
    pub words: Vec<Word>,
    /// From the first byte of the name to the last byte of the last argument, quotes included.
    pub span: Range<usize>,
    /// Line of the name, counted from 1.
    pub line: usize,
    /// The directives between the braces; `None` if it ends with `;`.
    pub block: Option<Vec<Directive>>,
}

impl Directive {
    /// The name.
    pub fn name(&self) -> &str {
        self.words.first().map_or("", |word| &word.value)
    }

    /// The arguments' values.
    pub fn args(&self) -> impl Iterator<Item = &str> {
        self.words.iter().skip(1).map(|word| word.value.as_str())
    }
}

/// Parses a whole file.
///
/// # Errors
/// If nginx would not accept the text.
pub fn parse(text: &[u8]) -> Result<Vec<Directive>, SyntaxError> {
    let mut lexer = Lexer { text, at: 0 };
    // Blocks that are open, outermost first: the directives so far, and the directive that opened the next one.
    let mut open: Vec<(Vec<Directive>, Directive)> = Vec::new();
    let mut current = Vec::new();
    let mut words: Vec<Spelled> = Vec::new();
    loop {
        match lexer.next()? {
            Token::Word(word) => words.push(word),
            Token::End if words.is_empty() => {
                return Err(lexer.error(lexer.at, "`;` without a directive"));
            }
            Token::End => current.push(lexer.directive(&mut words)),
            Token::Open if words.is_empty() => {
                return Err(lexer.error(lexer.at, "`{` without a directive"));
            }
            Token::Open => {
                let mut directive = lexer.directive(&mut words);
                if directive.name().ends_with("_by_lua_block") {
                    lexer.skip_lua()?;
                    directive.block = Some(Vec::new());
                    current.push(directive);
                } else {
                    open.push((std::mem::take(&mut current), directive));
                }
            }
            Token::Close if !words.is_empty() => {
                return Err(lexer.error(lexer.at, "`}` inside a directive"));
            }
            Token::Close => {
                let Some((outer, mut directive)) = open.pop() else {
                    return Err(lexer.error(lexer.at, "`}` that closes nothing"));
                };
                directive.block = Some(std::mem::replace(&mut current, outer));
                current.push(directive);
            }
            Token::EndOfText if !words.is_empty() => {
                return Err(lexer.error(lexer.at, "the last directive has no `;`"));
            }
            Token::EndOfText if !open.is_empty() => {
                return Err(lexer.error(lexer.at, "a block has no `}`"));
            }
            Token::EndOfText => return Ok(current),
        }
    }
}

/// A word and where it stands with its quotes.
struct Spelled {
    word: Word,
    outer: Range<usize>,
}

enum Token {
    Word(Spelled),
    End,
    Open,
    Close,
    EndOfText,
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn error(&self, at: usize, problem: &'static str) -> SyntaxError {
        SyntaxError { line: self.line(at), problem }
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.iter().take(at).filter(|byte| **byte == b'\n').count()
    }

    fn directive(&self, words: &mut Vec<Spelled>) -> Directive {
        let start = words.first().map_or(self.at, |first| first.outer.start);
        let end = words.last().map_or(self.at, |last| last.outer.end);
        let words = std::mem::take(words).into_iter().map(|spelled| spelled.word).collect();
        Directive { words, span: start..end, line: self.line(start), block: None }
    }

    fn next(&mut self) -> Result<Token, SyntaxError> {
        loop {
            let token = match self.peek() {
                None => return Ok(Token::EndOfText),
                Some(byte) if is_blank(byte) => {
                    self.at += 1;
                    continue;
                }
                Some(b'#') => {
                    self.skip_line();
                    continue;
                }
                Some(b';') => Token::End,
                Some(b'{') => Token::Open,
                Some(b'}') => Token::Close,
                Some(quote @ (b'"' | b'\'')) => return self.quoted(quote).map(Token::Word),
                Some(_) => return self.plain().map(Token::Word),
            };
            self.at += 1;
            return Ok(token);
        }
    }

    fn skip_line(&mut self) {
        while self.peek().is_some_and(|byte| byte != b'\n') {
            self.at += 1;
        }
    }

    fn quoted(&mut self, quote: u8) -> Result<Spelled, SyntaxError> {
        let start = self.at;
        self.skip_string(quote, "a quote is never closed")?;
        match self.peek() {
            Some(byte) if is_blank(byte) || matches!(byte, b';' | b'{' | b')') => {}
            _ => return Err(self.error(self.at, "text right behind a closing quote")),
        }
        Ok(self.spelled(start + 1..self.at - 1, start..self.at))
    }

    /// From an opening quote to behind the closing one.
    fn skip_string(&mut self, quote: u8, unclosed: &'static str) -> Result<(), SyntaxError> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                None => return Err(self.error(start, unclosed)),
                Some(b'\\') => self.at += 2,
                Some(byte) => {
                    self.at += 1;
                    if byte == quote {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn plain(&mut self) -> Result<Spelled, SyntaxError> {
        let start = self.at;
        loop {
            match self.peek() {
                None => return Err(self.error(start, "the last directive has no `;`")),
                Some(b'\\') => self.at += 2,
                Some(b'$') => {
                    self.at += 1;
                    // `${name}`: this brace opens no block.
                    while self.peek() == Some(b'{') {
                        self.at += 1;
                    }
                }
                Some(byte) if is_blank(byte) || matches!(byte, b';' | b'{') => {
                    return Ok(self.spelled(start..self.at, start..self.at));
                }
                Some(_) => self.at += 1,
            }
        }
    }

    fn spelled(&self, span: Range<usize>, outer: Range<usize>) -> Spelled {
        let value = unescape(self.text.get(span.clone()).unwrap_or_default());
        Spelled { word: Word { span, value }, outer }
    }

    /// From behind the `{` of a `…_by_lua_block` to behind its `}`. Braces in Lua's strings and comments do not count.
    fn skip_lua(&mut self) -> Result<(), SyntaxError> {
        const UNCLOSED: &str = "a Lua block is never closed";
        let start = self.at;
        let mut depth = 1_usize;
        while depth > 0 {
            match self.peek() {
                None => return Err(self.error(start, UNCLOSED)),
                Some(quote @ (b'"' | b'\'')) => self.skip_string(quote, UNCLOSED)?,
                Some(b'-') if self.text.get(self.at + 1) == Some(&b'-') => {
                    self.at += 2;
                    if !self.skip_long_bracket(UNCLOSED)? {
                        self.skip_line();
                    }
                }
                Some(b'[') => {
                    if !self.skip_long_bracket(UNCLOSED)? {
                        self.at += 1;
                    }
                }
                Some(byte) => {
                    self.at += 1;
                    depth = match byte {
                        b'{' => depth + 1,
                        b'}' => depth - 1,
                        _ => depth,
                    };
                }
            }
        }
        Ok(())
    }

    /// Skips Lua's `[[ … ]]` or `[==[ … ]==]` if one starts here.
    fn skip_long_bracket(&mut self, unclosed: &'static str) -> Result<bool, SyntaxError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let level = rest.iter().skip(1).take_while(|byte| **byte == b'=').count();
        if rest.first() != Some(&b'[') || rest.get(level + 1) != Some(&b'[') {
            return Ok(false);
        }
        let close: Vec<u8> = [b"]".as_slice(), &vec![b'='; level], b"]"].concat();
        let Some(length) = rest.windows(close.len()).position(|window| window == close) else {
            return Err(self.error(self.at, unclosed));
        };
        self.at += length + close.len();
        Ok(true)
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// nginx drops the backslash before quotes and backslashes, knows `\t \r \n`, and leaves the rest as it is.
fn unescape(raw: &[u8]) -> String {
    let mut value = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let resolved = match (byte, bytes.peek()) {
            (b'\\', Some(next @ (b'"' | b'\'' | b'\\'))) => Some(*next),
            (b'\\', Some(b't')) => Some(b'\t'),
            (b'\\', Some(b'r')) => Some(b'\r'),
            (b'\\', Some(b'n')) => Some(b'\n'),
            _ => None,
        };
        if resolved.is_some() {
            bytes.next();
        }
        value.push(resolved.unwrap_or(byte));
    }
    String::from_utf8_lossy(&value).into_owned()
}
