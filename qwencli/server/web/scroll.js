// Keeps a scroller at its end while its content grows, but only while the user is at the end.
import { byId } from "./dom.js";

const NEAR = 40; // pixels from the end that count as the end

export class Follower {
  #top = 0;

  constructor(scroller) {
    this.scroller = scroller;
    this.following = true;
    this.button = byId("to-end");
    this.button.addEventListener("click", () => this.toEnd());
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    if (atEnd) this.following = true;
    else if (scrollTop < this.#top) this.following = false; // only the user scrolls up
    this.#top = scrollTop;
    this.button.hidden = atEnd || this.following;
  }

  // Call this after the content has changed.
  grown() {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.#scrolled();
  }

  toEnd() {
    this.following = true;
    this.grown();
    this.button.hidden = true;
  }
}
