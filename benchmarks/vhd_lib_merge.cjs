// Merge a child into its parent with the vhd-lib installed in the folder VHD_LIB: `node vhd_lib_merge.cjs PARENT CHILD`.
// The result is synced at the end, since a merge that may still be lost is none. Version 4 gives it the child's name.
'use strict'

const fs = require('fs')
const { createRequire } = require('module')

const load = createRequire(process.env.VHD_LIB + '/')

// The files of this machine, as vhd-lib asks for them: by name, or by what openFile returned.
const opened = async (file, use) => {
  if (typeof file !== 'string') {
    return use(file.handle)
  }
  const handle = await fs.promises.open(file, 'r+')
  try {
    return await use(handle)
  } finally {
    await handle.close()
  }
}

const handler = {
  openFile: async (path, flags) => ({ handle: await fs.promises.open(path, flags) }),
  closeFile: async file => file.handle.close(),
  getSize: file => opened(file, async handle => (await handle.stat()).size),
  read: (file, buffer, position) =>
    opened(file, async handle => {
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, position)
      return { bytesRead, buffer }
    }),
  getSizeOnDisk: file => opened(file, async handle => (await handle.stat()).blocks * 512),
  isEncrypted: false,
  readFile: path => fs.promises.readFile(path),
  writeFile: (path, data) => fs.promises.writeFile(path, data),
  rename: (from, to) => fs.promises.rename(from, to),
  unlink: path => fs.promises.unlink(path),
  write: (file, buffer, position) =>
    opened(file, async handle => {
      let done = 0
      while (done < buffer.length) {
        done += (await handle.write(buffer, done, buffer.length - done, position + done)).bytesWritten
      }
    }),
}

const main = async ([parent, child]) => {
  const { mergeVhd } = load('vhd-lib')
  let result = parent
  if (mergeVhd !== undefined) {
    await mergeVhd(handler, parent, handler, child)
  } else {
    await load('vhd-lib/merge.js').mergeVhdChain(handler, [parent, child], { removeUnused: true })
    result = child
  }
  const handle = await fs.promises.open(result, 'r+')
  await handle.sync()
  await handle.close()
}

main(process.argv.slice(2)).catch(error => {
  console.error(error)
  process.exit(1)
})
