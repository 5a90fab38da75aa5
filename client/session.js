/**
 * Calls with the caller's token, and the moment of the last mark; when the token is refused, the page
 * is asked for a new one, once.
 */
import { later } from "./api.js";

/** @typedef {import("./api.js").Access} Access */
/** @typedef {(refused?: string) => string | Promise<string>} GiveToken */

export class Session {
  #url;
  #give;
  /** @type {string | null} */
  #token = null;
  /** @type {Promise<string> | null} */
  #renewal = null;
  /** @type {string | undefined} when the caller last marked, here or in another tab */
  #markedAt;

  /** @param {string} url @param {GiveToken} give */
  constructor(url, give) {
    this.#url = url;
    this.#give = give;
  }

  /**
   * @template T
   * @param {(access: Access) => Promise<T>} send
   * @returns {Promise<T>}
   */
  async call(send) {
    const token = this.#token ?? (await this.#renew());
    try {
      return await this.#send(send, token);
    } catch (error) {
      if (/** @type {any} */ (error).status !== 401) throw error;
      // Many calls may be refused at once; the page is asked by the first.
      const next = this.#token === token ? await this.#renew(token) : this.#token;
      if (next === null || next === token) throw error;
      return this.#send(send, next);
    }
  }

  get markedAt() {
    return this.#markedAt;
  }

  /** @param {string | undefined} moment  at which the caller has marked */
  note(moment) {
    this.#markedAt = later(this.#markedAt, moment);
  }

  /**
   * @template T
   * @param {(access: Access) => Promise<T>} send
   * @param {string} token
   * @returns {Promise<T>}
   */
  async #send(send, token) {
    /** @type {Access} */
    const access = { url: this.#url, token, markedAt: this.#markedAt };
    const answer = await send(access);
    this.note(access.markedAt);
    return answer;
  }

  /** @param {string} [refused] @returns {Promise<string>} */
  #renew(refused) {
    const ask = async () => {
      try {
        return (this.#token = await this.#give(refused));
      } finally {
        this.#renewal = null;
      }
    };
    return (this.#renewal ??= ask());
  }
}
