/** @typedef {import("./api.js").Access} Access */
/** @typedef {(refused?: string) => string | Promise<string>} GiveToken */
export class Session {
    /** @param {string} url @param {GiveToken} give */
    constructor(url: string, give: GiveToken);
    /**
     * @template T
     * @param {(access: Access) => Promise<T>} send
     * @returns {Promise<T>}
     */
    call<T>(send: (access: Access) => Promise<T>): Promise<T>;
    get markedAt(): string | undefined;
    /** @param {string | undefined} moment  at which the caller has marked */
    note(moment: string | undefined): void;
    #private;
}
export type Access = import("./api.js").Access;
export type GiveToken = (refused?: string) => string | Promise<string>;
