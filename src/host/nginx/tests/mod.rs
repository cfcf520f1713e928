mod flip;
mod reach;
mod refuse;
mod support;
