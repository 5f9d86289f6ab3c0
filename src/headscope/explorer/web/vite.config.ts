import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { defineConfig, type Plugin } from "vite";

/** The license of every package whose code is in the bundle, as those licenses ask. */
function licenses(): Plugin {
  return {
    name: "licenses",
    generateBundle(_options, bundle) {
      const found = new Map<string, string>();
      for (const chunk of Object.values(bundle)) {
        if (chunk.type !== "chunk") continue;
        for (const [id, module] of Object.entries(chunk.modules)) {
          if (!id.includes("node_modules") || module.renderedLength === 0) continue;
          const folder = packageOf(id);
          const { name, version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf-8"));
          found.set(`${name} ${version}`, readFileSync(join(folder, "LICENSE"), "utf-8").trim());
        }
      }
      const source = [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, text]) => `${name}\n\n${text}\n`);
      this.emitFile({ type: "asset", fileName: "assets/licenses.txt", source: source.join(`\n${"-".repeat(72)}\n\n`) });
    },
  };
}

function packageOf(id: string): string {
  let folder = dirname(id);
  // A package may hold folders with a nameless package.json of their own.
  while (!existsSync(join(folder, "LICENSE"))) folder = dirname(folder);
  return folder;
}

// One classic script and one style sheet: a page opened from a file may not load ES modules, and the content policy
// allows neither inline scripts nor eval. Names without hashes, so that a built tree differs only where it changed.
export default defineConfig({
  plugins: [licenses()],
  esbuild: { jsx: "automatic", jsxImportSource: "preact", legalComments: "none" },
  build: {
    target: "es2022",
    outDir: "dist",
    cssCodeSplit: false,
    modulePreload: false,
    reportCompressedSize: false,
    rollupOptions: {
      input: "src/main.tsx",
      output: { format: "iife", entryFileNames: "assets/explorer.js", assetFileNames: "assets/explorer[extname]" },
    },
  },
});
