import { readFileSync } from 'node:fs';

export const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');

/** The code blocks of README that are in `language`, in order. */
export function codeBlocks(language: string): string[] {
  const fence = new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, 'gms');
  return [...readme.matchAll(fence)].map((match) => match[1] ?? '');
}

/** The one block in `language` that contains `text`. */
export function codeBlock(language: string, text: string): string {
  const blocks = codeBlocks(language).filter((block) => block.includes(text));
  const [block] = blocks;
  if (block === undefined || blocks.length > 1) {
    throw new Error(`README has ${blocks.length} ${language} blocks with "${text}", not one`);
  }
  return block;
}
