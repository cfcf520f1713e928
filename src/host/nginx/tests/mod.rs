mod flip;
mod refuse;
mod support;
